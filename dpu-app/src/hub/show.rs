//! The engine thread shows itself to the metrics thread (workers/board.rs).

use crate::hub::{Hub, status};
use crate::pipeline::slots::SlotState;
use crate::workers::board::Shown;

impl Hub<'_, '_> {
    /// Shows itself if somebody asks.
    pub(crate) fn show(&self) {
        let board = &self.shared.board;
        if !board.is_asked() {
            return;
        }
        let mut face = board.face();
        let engines = [self.inflate.as_ref(), Some(&self.bulk), Some(&self.mail)];
        let mut degraded = false;
        self.shared.store.trouble(&mut |_| degraded = true);
        let worst = engines.iter().flatten().max_by_key(|engine| engine.restarts).expect("there are two at least");
        face.shown = Shown {
            state: self.state,
            slots: SlotState::ALL.map(|state| self.pipeline.slots.count(state)),
            chunks_in_progress: self.pipeline.order.len(),
            sessions: self.sessions.iter().flatten().count(),
            refused: self.events.refused(),
            in_flight: engines.map(|engine| engine.map_or(0, |engine| engine.context.in_flight())),
            restarts_in_a_row: worst.restarts,
            engine_moved_ago: self.now.saturating_duration_since(worst.last_progress),
            degraded,
            store_failures: self.store_watch.failures(),
            store_failed_ago: self.store_watch.failed_ago(self.now),
            workers_stuck: self.stuck.total(),
            store: self.shared.store.stats(),
        };
        face.write_status(|out| status::write(self, out));
        board.answer(face);
    }
}
