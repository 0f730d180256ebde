//! The directory where Comch's servers and clients meet, and whom it is safe to meet there.
//!
//! Whoever may put files there may stand in for a server. So the directory is its own user's or root's, and nobody else
//! may write to it, or may add files and not replace others' (the sticky bit, as in /tmp). A server in it is believed
//! if it is run by us, by root, or by the directory's owner. Nothing is opened through a symbolic link, and no open
//! waits.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::ffi::{Fault, complain};
use crate::tools::packet;

const STICKY: u32 = libc::S_ISVTX;
const WRITABLE_BY_OTHERS: u32 = libc::S_IWGRP | libc::S_IWOTH;

pub(crate) struct Meeting {
    pub(crate) path: PathBuf,
    owner: libc::uid_t,
}

impl Meeting {
    /// Makes the directory, for its user alone, if it is not there; refuses one that is not safe, and says why.
    pub(crate) fn of(config: &Config) -> Result<Meeting, Fault> {
        let path = config.comch_dir.clone().unwrap_or_else(|| {
            let parent = std::env::var_os("XDG_RUNTIME_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
            parent.join(format!("doca-emulator-{}", packet::user()))
        });
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&path);
        // Not through a link, whose owner decides where it leads.
        let about = made.and_then(|()| fs::symlink_metadata(&path)).map_err(|err| refuse(&path, err))?;
        let (owner, mode) = (about.uid(), about.mode());
        if !about.is_dir() {
            return Err(refuse(&path, "it is no directory: choose another comch_dir"));
        }
        if ![0, packet::user()].contains(&owner) {
            let why = format!("it belongs to user {owner}: remove it, or choose another comch_dir");
            return Err(refuse(&path, why));
        }
        if mode & WRITABLE_BY_OTHERS != 0 && mode & STICKY == 0 {
            let why = format!("others may replace what is in it (mode {:o}): chmod go-w, or +t", mode & 0o7777);
            return Err(refuse(&path, why));
        }
        Ok(Meeting { path, owner })
    }

    /// Whether the server at the other end may be one.
    pub(crate) fn trusts(&self, socket: &OwnedFd, path: &Path) -> bool {
        let Ok(peer) = packet::peer(socket) else { return false };
        let is_trusted = [0, self.owner, packet::user()].contains(&peer.uid);
        if !is_trusted {
            complain(&format!("comch: {}: the server there is run by user {}: not used", path.display(), peer.uid));
        }
        is_trusted
    }
}

fn refuse(path: &Path, why: impl fmt::Display) -> Fault {
    complain(&format!("comch: directory {}: {why}", path.display()));
    Fault::DOCA_ERROR_OPERATING_SYSTEM
}

/// Takes the lock beside a server's socket; held until the file is closed, by whatever end of the process.
pub(crate) fn lock_file(path: &Path) -> Result<File, Fault> {
    let mut name = OsString::from_vec(path.as_os_str().as_bytes().to_vec());
    name.push(".lock");
    let mut options = fs::OpenOptions::new();
    options.create(true).truncate(false).write(true).mode(0o600).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let is_ours = |file: &File| {
        let about = file.metadata()?;
        match about.is_file() && [0, packet::user()].contains(&about.uid()) {
            true => Ok(()),
            false => Err(io::Error::other("it is somebody else's: remove it, or choose another comch_dir")),
        }
    };
    let file = options.open(&name).and_then(|file| is_ours(&file).map(|()| file)).map_err(|err| {
        complain(&format!("comch: {}: {err}", PathBuf::from(&name).display()));
        Fault::DOCA_ERROR_OPERATING_SYSTEM
    })?;
    // SAFETY: a descriptor that `file` keeps open.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
        return Err(Fault::DOCA_ERROR_ALREADY_EXIST);
    }
    Ok(file)
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn meet(path: &Path) -> Option<Meeting> {
        Meeting::of(&Config { comch_dir: Some(path.to_owned()), ..Config::default() }).ok()
    }

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a mode");
    }

    #[test]
    fn a_directory_is_made_for_its_user_alone() {
        let home = tempfile::tempdir().expect("a directory");
        let meeting = meet(&home.path().join("a/b")).expect("a new one");
        let about = fs::metadata(&meeting.path).expect("it is there");
        assert_eq!((about.mode() & 0o7777, meeting.owner), (0o700, packet::user()));
    }

    #[test]
    fn a_directory_that_others_rule_is_refused() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("place");
        fs::create_dir(&path).expect("a directory");
        for (mode, is_safe) in [(0o755, true), (0o777, false), (0o770, false), (0o1777, true)] {
            chmod(&path, mode);
            assert_eq!(meet(&path).is_some(), is_safe, "{mode:o}");
        }
        symlink(&path, home.path().join("link")).expect("a link");
        assert!(meet(&home.path().join("link")).is_none(), "whoever owns the link decides where it leads");
        fs::write(home.path().join("file"), "").expect("a file");
        assert!(meet(&home.path().join("file")).is_none());
        if packet::user() == 0 {
            chmod(&path, 0o700);
            match std::os::unix::fs::chown(&path, Some(65534), None) {
                Ok(()) => assert!(meet(&path).is_none(), "another user's"),
                // In a user namespace root may be the only user that there is.
                Err(error) => eprintln!("skipped: another user's directory: {error}"),
            }
        }
    }

    #[test]
    fn a_lock_that_is_a_pipe_or_a_link_is_refused_at_once() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("server");
        assert!(lock_file(&path).is_ok());
        let lock = home.path().join("server.lock");
        fs::remove_file(&lock).expect("its file");
        symlink(home.path().join("elsewhere"), &lock).expect("a link");
        assert!(lock_file(&path).is_err() && !home.path().join("elsewhere").exists());
        fs::remove_file(&lock).expect("the link");
        let name = std::ffi::CString::new(lock.as_os_str().as_bytes()).expect("a name");
        // SAFETY: a path that ends.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        assert!(lock_file(&path).is_err());
    }
}
