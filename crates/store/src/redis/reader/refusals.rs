//! What becomes of errands whose server answers with an error, or whose connection closes.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use nix::errno::Errno;

use super::errand::Work;
use super::errands::Errands;
use crate::redis::fault::{Fault, said};
use crate::redis::greeting::LoginRefusal;
use crate::redis::inflow::{Due, Recipient, Wants};
use crate::{BlockMemory, STORE_TRIES, StoreError};

/// Redirects that one errand follows.
const HOPS_MAX: u8 = 8;

impl<M: BlockMemory> Errands<'_, M> {
    /// Does what an error reply of `node` asks for.
    pub(super) fn take_fault(&mut self, node: u16, place: u16, item: u16, text: &[u8]) {
        let fault = Fault::read(text);
        let store = self.store;
        let facts = store.nodes.at(node);
        let now = Instant::now();
        let errand = self.errand(place);
        if let Work::Lookup(lookup) = &mut errand.work {
            lookup.asked.remove(item.into());
        }
        let (call, command) = (errand.work.call(), errand.work.command());
        match fault {
            Fault::Moved { slot, to } => {
                facts.redirects.fetch_add(1, Relaxed);
                let target = store.place_of(node, to);
                if let Some(target) = target {
                    store.nodes.moved(slot.into(), target);
                }
                store.surveyor.ask();
                let errand = self.errand(place);
                errand.aside = None;
                errand.hops += 1;
                if let Work::Lookup(lookup) = &mut errand.work {
                    lookup.forget_aside(item);
                }
                if target.is_none() || errand.hops > HOPS_MAX { self.later(place, now) } else { self.wait(place) }
            }
            Fault::Ask { to } => {
                facts.redirects.fetch_add(1, Relaxed);
                let target = store.place_of(node, to);
                let errand = self.errand(place);
                errand.hops += 1;
                let many = errand.hops > HOPS_MAX;
                let known = match (target, &mut errand.work) {
                    (None, _) => false,
                    (Some(target), Work::Lookup(lookup)) => lookup.set_aside(item, target),
                    (Some(target), _) => {
                        errand.aside = Some(target);
                        !many
                    }
                };
                if known { self.wait(place) } else { self.later(place, now) }
            }
            Fault::Later | Fault::Replica => {
                store.surveyor.ask();
                self.later(place, now);
            }
            Fault::WrongType => match &mut self.errand(place).work {
                Work::Lookup(lookup) => {
                    lookup.asked.add(item.into());
                    lookup.lookup.note(item.into(), false);
                    self.settle_lookup(place);
                }
                // No chunk, whatever else it is.
                _ => self.end(place, Err(StoreError::Miss)),
            },
            // Whoever waits for this connection hears so when it is closed.
            Fault::Login => {
                self.revoked =
                    Some(LoginRefusal { later: false, asked: command, said: said(text, &store.connector.login()) });
                self.fail(place, StoreError::Denied { call });
            }
            Fault::Permission | Fault::Unknown => {
                facts.errors.fetch_add(1, Relaxed);
                store.complain(node, command, fault, &said(text, &store.connector.login()));
                self.fail(place, StoreError::Denied { call });
            }
            Fault::Full | Fault::ReadOnly | Fault::NoSuchKey | Fault::Other => {
                facts.errors.fetch_add(1, Relaxed);
                store.counters.io_errors.fetch_add(1, Relaxed);
                let errand = self.errand(place);
                errand.tries += 1;
                if errand.tries >= STORE_TRIES {
                    self.fail(place, StoreError::Io { call, errno: Errno::EPROTO });
                } else {
                    self.later(place, now);
                }
            }
        }
    }

    /// Notes that a connection closed which owed this.
    pub(super) fn lost(&mut self, due: Due<M>) {
        let Recipient::Errand { place, generation, item } = due.owner else { return };
        if self.generations[usize::from(place)] != generation {
            return;
        }
        let errand = self.errand(place);
        errand.lost = true;
        match (due.wants, &mut errand.work) {
            (Wants::Block { memory, .. }, Work::Read { memory: home, .. }) => *home = memory,
            (_, Work::Lookup(lookup)) => lookup.asked.remove(item.into()),
            _ => {}
        }
    }

    /// Asks again what a closed connection owed, or ends it with `error`.
    pub(super) fn sweep_lost(&mut self, error: Option<StoreError>) {
        let now = Instant::now();
        for place in self.places() {
            let Some(errand) = self.get(place).filter(|errand| errand.lost) else { continue };
            errand.lost = false;
            errand.tries += 1;
            let (call, tries, slot) = (errand.work.call(), errand.tries, errand.slot);
            if let Some(node) = self.store.nodes.master(slot.into()) {
                self.store.nodes.at(node).retries.fetch_add(1, Relaxed);
            }
            match error {
                Some(error) => self.fail(place, error),
                None if tries >= STORE_TRIES => self.fail(place, StoreError::Down { call, errno: Errno::ECONNRESET }),
                None => self.later(place, now),
            }
        }
    }
}
