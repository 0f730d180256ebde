//! Init of the engine thread: contexts, tables and listeners, once.

use std::os::fd::AsFd;
use std::time::Instant;

use doca::{CompressedFormat, Context, Device, ProgressEngine};
use mailbox::channel::Listener;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use crate::config::Config;
use crate::count::trace::RequestTrace;
use crate::hub::complaints::Complaints;
use crate::hub::engine::CardEngine;
use crate::hub::error::system;
use crate::hub::events::Events;
use crate::hub::fit::{Fit, InflateFit};
use crate::hub::health::{StoreWatch, StuckWorkers};
use crate::hub::marks::Marks;
use crate::hub::notice::Notices;
use crate::hub::notify::Supervisor;
use crate::hub::session::SessionDesk;
use crate::hub::visitors::{OPERATORS_MAX, REFUSED_MAX};
use crate::hub::{Hub, HubError, comch, selftest, tag};
use crate::pipeline::{Inflater, Pipeline};
use crate::workers::board::HubState;
use crate::workers::crew::Crews;
use crate::workers::shared::Shared;

impl<'a, 's> Hub<'a, 's> {
    /// Creates the contexts, checks the engine against a known block, allocates every table. Init only.
    ///
    /// # Errors
    /// Says what the device or the system refused.
    pub(crate) fn new(
        shared: &'a Shared<'s>,
        device: Device,
        fit: &Fit,
        crews: Crews<'a>,
        mut listeners: Vec<Box<dyn Listener>>,
    ) -> Result<Self, HubError> {
        let config = shared.config;
        let engine = ProgressEngine::new()?;
        let (inflate, crc_trusted) = Self::inflate_engine(&engine, &device, config, fit.inflate)?;
        let lz4 = fit.inflate.is_some_and(|inflate| inflate.lz4);
        let inflater = inflate.is_some().then_some(Inflater { lz4, crc_trusted });
        let mut bulk = CardEngine::new(Context::dma(&engine, &device, fit.bulk)?);
        let mut mail = CardEngine::new(Context::dma(&engine, &device, fit.mail)?);
        bulk.can_prove_itself(&device)?;
        mail.can_prove_itself(&device)?;
        let mut desks = Vec::with_capacity(config.places());
        let desks_made = SessionDesk::lay_out(&device, config.places(), &mut desks)?;
        let supervisor = Supervisor::new(config.supervisor.as_ref())
            .map_err(|error| system("socket")(Errno::try_from(error).unwrap_or(Errno::EIO)))?;
        let now = Instant::now();
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(system("epoll_create"))?;
        let watch = |fd: std::os::fd::BorrowedFd<'_>, tag| {
            epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, tag)).map_err(system("epoll_ctl"))
        };
        watch(engine.fd(), tag::ENGINE)?;
        watch(shared.engine_bell.as_fd(), tag::BELL)?;
        if config.attach.has_comch() {
            for listener in comch::listen(&engine, &device, config).map_err(HubError::Comch)? {
                listeners.push(Box::new(listener));
            }
        }
        for (index, listener) in listeners.iter().enumerate() {
            listener.fd().map_or(Ok(()), |fd| watch(fd, tag::LISTENER | index as u64))?;
        }
        watch(shared.stop.as_fd(), tag::STOP)?;
        Ok(Self {
            device,
            askers: crews.askers,
            fetchers: crews.fetchers,
            dequantizers: crews.dequantizers,
            encoders: crews.encoders,
            engine,
            inflate,
            bulk,
            mail,
            pipeline: Pipeline::new(config, inflater),
            sessions: (0..config.places()).map(|_| None).collect(),
            desks,
            desks_made,
            visitors: Vec::with_capacity(config.places() + OPERATORS_MAX + REFUSED_MAX),
            rests: vec![None; listeners.len()],
            listeners,
            epoll,
            armed: false,
            state: HubState::Init,
            leaving_since: None,
            started: now,
            now,
            last_attend: now,
            last_deadline: now,
            sessions_seen: 0,
            requests_seen: 0,
            events: Events::new(now),
            trace: RequestTrace::new(now, config.slow),
            marks: Marks::new(config, now),
            notices: Notices::default(),
            store_watch: StoreWatch::default(),
            stuck: StuckWorkers::default(),
            complaints: Complaints::new(now),
            attach_buffer: vec![0; mailbox::attach::ATTACH_MESSAGE_MAX],
            supervisor,
            shared,
        })
    }

    /// Opens the inflate engine, if it is to be used, and tests whether its CRC-32 can stand for ours.
    fn inflate_engine(
        engine: &ProgressEngine,
        device: &Device,
        config: &Config,
        fit: Option<InflateFit>,
    ) -> Result<(Option<CardEngine>, bool), HubError> {
        let Some(InflateFit { lz4, depth }) = fit else { return Ok((None, false)) };
        let codecs: &[CompressedFormat] =
            if lz4 { &[CompressedFormat::Deflate, CompressedFormat::Lz4Block] } else { &[CompressedFormat::Deflate] };
        let mut context = Context::decompress(engine, device, codecs, depth)?;
        let trusted = selftest::inflates_a_known_block(engine, device, &mut context)?;
        if !trusted {
            log::warn!("the engine's CRC-32 is not the one of docs/formats.md: codes are checked in software");
        }
        Ok((Some(CardEngine::new(context)), trusted && !config.software_crc))
    }
}
