//! Looks ahead of dpu-app: what a card would do by the model, what this machine does, and which configuration follows.
//!
//! ```text
//! profile   rates of this machine's stages, engines by block size and depth       profile.rs
//! models    shapes of models, and a BlueField-3 as far as it is known             models.rs
//! simulate  dpu-app's scheduler in virtual time, over either of these             simulate.rs
//! propose   the best configuration that the simulator finds                       propose.rs
//! trial     dpu-app's own workers and engines, stage by stage: for benchmarks     trial.rs
//! ```
//! Both simulator and trial drive the pipeline of the data plane itself: they are a `dpu_app::World` each.
//! Nothing here is a data plane: all of it allocates.
#![forbid(unsafe_code)]

pub mod models;
pub mod profile;
pub mod propose;
pub mod simulate;
pub mod trial;
