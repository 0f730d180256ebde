//! A real cluster: three masters, each with a replica.

use std::process::Command;
use std::time::{Duration, Instant};

use super::Server;

/// A node that is silent for this long is taken for dead by its cluster.
const NODE_TIMEOUT_MS: &str = "1000";

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) servers: Vec<Server>,
}

impl Cluster {
    pub(crate) fn start(program: &'static str) -> Self {
        // A port that is free now may be taken by the next: then it all begins anew.
        for _ in 0..5 {
            let cluster = Self::try_start(program);
            if let Some(cluster) = cluster {
                return cluster;
            }
        }
        panic!("no cluster of six comes up");
    }

    fn try_start(program: &'static str) -> Option<Self> {
        let start = |_| {
            Server::start(
                program,
                &[
                    "--cluster-enabled",
                    "yes",
                    "--cluster-node-timeout",
                    NODE_TIMEOUT_MS,
                    "--cluster-replica-validity-factor",
                    "0",
                    "--repl-diskless-sync-delay",
                    "0",
                    "--repl-ping-replica-period",
                    "1",
                ],
            )
        };
        let servers: Vec<Server> = (0..6).map(start).collect();
        let mut command = Command::new("redis-cli");
        command.args(["--cluster", "create"]).args(servers.iter().map(Server::address));
        command.args(["--cluster-replicas", "1", "--cluster-yes"]);
        let output = command.output().expect("redis-cli comes with redis-tools");
        if !output.status.success() {
            eprintln!("cluster: {}", String::from_utf8_lossy(&output.stdout));
            return None;
        }
        let cluster = Self { servers };
        let end = Instant::now() + Duration::from_secs(30);
        while !cluster.is_whole() {
            if Instant::now() > end {
                eprintln!("cluster: not whole: {}", cluster.servers[0].cli(&["CLUSTER", "INFO"]));
                return None;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(cluster)
    }

    /// All know all, and each replica is up to date and known to be: a server shows no replica of which it has not
    /// heard how far it is.
    fn is_whole(&self) -> bool {
        self.servers.iter().all(|server| {
            let info = server.cli(&["CLUSTER", "INFO"]);
            let replication = server.cli(&["INFO", "replication"]);
            let slots = server.cli(&["CLUSTER", "SLOTS"]);
            info.contains("cluster_state:ok")
                && self.servers.iter().all(|other| slots.lines().any(|line| line == other.port.to_string()))
                && info.contains("cluster_known_nodes:6")
                && (replication.contains("role:master") && replication.contains("state=online")
                    || replication.contains("master_link_status:up"))
        })
    }

    pub(crate) fn url(&self, options: &str) -> String {
        let hosts: Vec<_> = self.servers.iter().take(2).map(Server::address).collect();
        format!("redis://{}{options}", hosts.join(","))
    }

    fn lines(&self) -> Vec<Vec<String>> {
        let asked = self.servers.iter().find(|server| server.runs()).expect("one runs");
        let nodes = asked.cli(&["CLUSTER", "NODES"]);
        nodes.lines().map(|line| line.split(' ').map(str::to_owned).collect()).collect()
    }

    /// Which server is the master of a slot.
    pub(crate) fn master_of(&self, slot: u16) -> usize {
        let serves = |range: &String| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            matches!((first.parse::<u16>(), last.parse::<u16>()), (Ok(first), Ok(last)) if (first..=last).contains(&slot))
        };
        let lines = self.lines();
        let line = lines.iter().find(|line| line[2].contains("master") && line[8..].iter().any(serves));
        self.server_at(&line.expect("somebody serves it")[1])
    }

    fn server_at(&self, address: &str) -> usize {
        let port: u16 = address.split(['@', ':']).nth(1).and_then(|port| port.parse().ok()).expect("an address");
        self.servers.iter().position(|server| server.port == port).expect("one of ours")
    }

    pub(crate) fn id(&self, server: usize) -> String {
        self.servers[server].cli(&["CLUSTER", "MYID"])
    }

    pub(crate) fn masters(&self) -> Vec<usize> {
        let lines = self.lines();
        lines
            .iter()
            .filter(|line| line[2].contains("master") && line.len() > 8)
            .map(|line| self.server_at(&line[1]))
            .collect()
    }

    pub(crate) fn flush(&self) {
        self.masters().iter().for_each(|master| self.servers[*master].flush());
    }
}
