//! The keys of all chunks of all masters, for tools.

use std::time::{Duration, Instant};

use block::ChunkKey;
use nix::errno::Errno;

use super::line::{BlockingConnection, CallError};
use super::name::KeyName;
use super::resp::{Reply, elements};
use super::{RedisStore, down};
use crate::StoreError;
use crate::node::NodeRole;

/// Bytes of the longest reply to a SCAN that is understood.
const NAMES_BYTES: usize = 64 << 10;
const PATIENCE: Duration = Duration::from_secs(5);

impl RedisStore {
    /// Lists the keys of all chunks, in no order.
    pub(super) fn scan(&self) -> Result<Vec<ChunkKey>, StoreError> {
        let mut keys = Vec::new();
        let mut roles = Vec::new();
        self.nodes.facts(&mut |node| roles.push(node.role));
        for ((_, node), _) in self.nodes.iter().zip(roles).filter(|(_, role)| *role == NodeRole::Master) {
            let mut line = BlockingConnection::new(NAMES_BYTES);
            let mut cursor = b"0".to_vec();
            loop {
                let until = Instant::now() + PATIENCE;
                line.dial(&self.connector, node.address, until).map_err(|error| match error {
                    CallError::Refused(_) => StoreError::Denied { call: "scan" },
                    CallError::Lost(error) => down("scan", &error),
                })?;
                let reply = line.call(&[b"SCAN", &cursor, b"MATCH", b"kvlane:{*}", b"COUNT", b"100"], until);
                let reply = reply.map_err(|error| down("scan", &error))?;
                let Reply::Other(reply) = reply else { return Err(StoreError::Denied { call: "scan" }) };
                let mut parts = elements(reply);
                let (Some(Reply::Bulk(next)), Some(Reply::Other(names))) = (parts.next(), parts.next()) else {
                    return Err(StoreError::Io { call: "scan", errno: Errno::EPROTO });
                };
                keys.extend(elements(names).filter_map(|name| match name {
                    Reply::Bulk(name) => KeyName::parse(name),
                    _ => None,
                }));
                cursor = next.to_vec();
                if cursor == b"0" {
                    break;
                }
            }
        }
        keys.sort_unstable();
        keys.dedup();
        Ok(keys)
    }
}
