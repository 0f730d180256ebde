//! SIGHUP: what may change while hosts are attached is taken over, what may not is named. It never ends anything: what
//! is wrong is said, and all stays as it is.
//!
//! ```text
//!   signals thread   reads command line, environment, --config again  -> ask(config)
//!   reload thread    here: deadlines, log level, logins and files of the store; everything else needs a restart
//! ```
//! Memory is decided at start, so nothing that sizes any can change. The thread sleeps otherwise; it alone allocates.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use doca::Area;
use store::{Readable, Reloaded};

use crate::config::Config;

/// A duration that may change while the data plane runs; its clones change with it.
#[derive(Clone, Debug)]
pub struct Live(Arc<AtomicU64>);

impl Live {
    #[must_use]
    pub fn get(&self) -> Duration {
        Duration::from_millis(self.0.load(Relaxed))
    }

    /// Changes it; `true` if it was another.
    fn set(&self, time: Duration) -> bool {
        let ms = time.as_millis() as u64;
        self.0.swap(ms, Relaxed) != ms
    }
}

impl From<Duration> for Live {
    /// Keeps whole milliseconds.
    fn from(time: Duration) -> Self {
        Self(Arc::new(AtomicU64::new(time.as_millis() as u64)))
    }
}

/// Hands a new configuration from the thread that hears the signal to the thread that acts on it.
#[derive(Clone, Debug, Default)]
pub struct Reload(Arc<(Mutex<Wanted>, Condvar)>);

#[derive(Debug, Default)]
struct Wanted {
    config: Option<Box<Config>>,
    leave: bool,
}

impl Reload {
    /// Asks for this configuration to be taken over. Returns at once.
    pub fn ask(&self, config: Config) {
        self.change(|wanted| wanted.config = Some(Box::new(config)));
    }

    fn change(&self, change: impl FnOnce(&mut Wanted)) {
        change(&mut self.0.0.lock().expect("panic is abort"));
        self.0.1.notify_one();
    }

    /// Runs the thread.
    pub(crate) fn run(&self, running: &Config, store: &dyn Readable<Area>) {
        loop {
            let idle = |wanted: &mut Wanted| wanted.config.is_none() && !wanted.leave;
            let wanted = self.0.0.lock().expect("panic is abort");
            let mut wanted = self.0.1.wait_while(wanted, idle).expect("panic is abort");
            if wanted.leave {
                return;
            }
            let config = wanted.config.take().expect("just looked");
            drop(wanted);
            take_over(running, store, &config);
        }
    }

    /// Ends the thread when the value that this returns is dropped.
    pub(crate) fn leave(&self) -> ReloadGuard<'_> {
        ReloadGuard(self)
    }
}

/// See [`Reload::leave`].
#[derive(Debug)]
pub(crate) struct ReloadGuard<'a>(&'a Reload);

impl Drop for ReloadGuard<'_> {
    fn drop(&mut self) {
        self.0.change(|wanted| wanted.leave = true);
    }
}

fn take_over(old: &Config, store: &dyn Readable<Area>, new: &Config) {
    let mut changed = Vec::new();
    for (flag, old, new) in [
        ("--deadline-ms", &old.deadline, &new.deadline),
        ("--attach-timeout-ms", &old.attach_timeout, &new.attach_timeout),
    ] {
        if old.set(new.get()) {
            changed.push(format!("{flag} is {} now", new.get().as_millis()));
        }
    }
    if let Some(level) = new.log_level.filter(|level| log::max_level() != *level) {
        log::set_max_level(level);
        changed.push(format!("--log-level is {} now", level.as_str().to_lowercase()));
    }
    let mut restart = what_differs(old, new);
    match store.reload(&new.store) {
        Ok(Reloaded::NeedsRestart) => restart.push("--store".into()),
        Ok(Reloaded::Login) => changed.push("the store's login".into()),
        Ok(Reloaded::Same) if store::directory(old.store.reveal()).is_some() && new.store != old.store => {
            restart.push("--store".into());
        }
        Ok(Reloaded::Same) => {}
        Err(error) => log::error!("reload: {error}: the store's login and files stay as they were"),
    }
    match changed.as_slice() {
        [] => {
            log::info!("reload: nothing that can change while running has changed; the store's files were read again")
        }
        changed => log::info!("reload: {}", changed.join(", ")),
    }
    if !restart.is_empty() {
        log::warn!("reload: {} changed, which only a restart takes over", restart.join(", "));
    }
}

/// Lists the fields that differ, as flags, without those that are taken over.
fn what_differs(old: &Config, new: &Config) -> Vec<String> {
    const TAKEN_OVER: [&str; 6] = ["deadline", "attach_timeout", "log_level", "store", "supervisor", "reload"];
    let (old, new) = (format!("{old:#?}"), format!("{new:#?}"));
    let (old, new) = (fields(&old), fields(&new));
    let differs = old.iter().zip(&new).filter(|(old, new)| old != new).map(|(old, _)| old.0);
    differs.filter(|name| !TAKEN_OVER.contains(name)).map(|name| format!("--{}", name.replace('_', "-"))).collect()
}

/// Splits a structure's pretty debug form, whose fields are indented by four, into names and values.
fn fields(text: &str) -> Vec<(&str, String)> {
    let mut fields: Vec<(&str, String)> = Vec::new();
    for line in text.lines() {
        match line.strip_prefix("    ").filter(|line| !line.starts_with([' ', '}', ']', ')'])) {
            Some(field) => {
                let (name, value) = field.split_once(": ").unwrap_or((field, ""));
                fields.push((name, value.to_owned()));
            }
            None => fields.last_mut().into_iter().for_each(|(_, value)| value.push_str(line)),
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_needs_a_restart_is_named_by_its_flag_and_what_does_not_is_not() {
        let old = Config::for_cores(2);
        let mut new = Config::for_cores(2);
        assert_eq!(what_differs(&old, &new), Vec::<String>::new());
        new.deadline = Duration::from_secs(1).into();
        new.store = "redis://u:secret@h".into();
        assert_eq!(what_differs(&old, &new), Vec::<String>::new());
        new.slots += 1;
        new.fetch_cpus = vec![0, 1];
        new.comch_name = "other".into();
        assert_eq!(what_differs(&old, &new), ["--comch-name", "--slots", "--fetch-cpus"]);
    }
}
