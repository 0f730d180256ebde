//! A file that has no name until it is whole, so that nothing is left of it however this process ends.
//!
//! Where the file system can, it is an inode without a name (`O_TMPFILE`), which the kernel frees when the process
//! goes, be it by `kill -9`. Where it cannot (NFS, vfat, old overlays), it has a hidden name, is locked while its maker
//! lives, and is removed by the next one that writes to that directory.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, Flock, FlockArg, OFlag};
use nix::unistd::linkat;

/// Ends a hidden name.
const SUFFIX: &str = ".kvlane-part";
/// Numbers hidden names within this process.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// See the module.
#[derive(Debug)]
pub(crate) struct PartFile {
    path: PathBuf,
    /// `None` once it is published.
    held: Option<Held>,
}

#[derive(Debug)]
enum Held {
    Nameless(File),
    Named { file: Flock<File>, name: PathBuf },
}

impl PartFile {
    /// A file to be called `path`, which has a file name.
    pub(crate) fn create(path: &Path) -> io::Result<PartFile> {
        remove_abandoned(directory(path));
        let held = match nameless(path) {
            Ok(file) => Held::Nameless(file),
            Err(error) if is_unsupported(&error) => named(path)?,
            Err(error) => return Err(error),
        };
        Ok(PartFile { path: path.to_owned(), held: Some(held) })
    }

    pub(crate) fn file(&self) -> &File {
        match self.held.as_ref().expect("published files are gone") {
            Held::Nameless(file) => file,
            Held::Named { file, .. } => file,
        }
    }

    /// Gives the file its name, replacing what had it, in one step.
    pub(crate) fn publish(mut self) -> io::Result<()> {
        match self.held.take().expect("published once") {
            Held::Nameless(file) => match link(&file, &self.path) {
                // Only a rename replaces a file in one step, and only what has a name can be renamed.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    let name = hidden(&self.path);
                    link(&file, &name)?;
                    rename(&name, &self.path)
                }
                linked => linked,
            },
            Held::Named { name, file: _lock } => rename(&name, &self.path),
        }
    }
}

impl Drop for PartFile {
    fn drop(&mut self) {
        if let Some(Held::Named { name, .. }) = &self.held
            && let Err(error) = fs::remove_file(name)
        {
            log::warn!("remove {}: {error}", name.display());
        }
    }
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// `.NAME.PID-N.kvlane-part` beside the file.
fn hidden(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}-{}{SUFFIX}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
    path.with_file_name(name)
}

/// The name under which the kernel lets a file without a name be linked.
fn handle(file: &File) -> PathBuf {
    use std::os::fd::AsRawFd;
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn nameless(path: &Path) -> io::Result<File> {
    let file = File::options().read(true).write(true).custom_flags(OFlag::O_TMPFILE.bits()).open(directory(path))?;
    // Without /proc it could never be given a name.
    fs::symlink_metadata(handle(&file)).map_err(|_| io::Error::from(Errno::EOPNOTSUPP))?;
    Ok(file)
}

/// What file systems and kernels without `O_TMPFILE` answer; EISDIR is the kernel's that does not know the flag.
fn is_unsupported(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::EINVAL))
}

fn named(path: &Path) -> io::Result<Held> {
    loop {
        let name = hidden(path);
        let file = File::options().read(true).write(true).create_new(true).open(&name)?;
        let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((_, errno)) => {
                let _ = fs::remove_file(&name);
                return Err(errno.into());
            }
        };
        // Before it was locked, somebody may have taken it for an abandoned one.
        if fs::symlink_metadata(&name).is_ok_and(|found| file.metadata().is_ok_and(|ours| ours.ino() == found.ino())) {
            return Ok(Held::Named { file, name });
        }
    }
}

fn link(file: &File, path: &Path) -> io::Result<()> {
    Ok(linkat(AT_FDCWD, &handle(file), AT_FDCWD, path, AtFlags::AT_SYMLINK_FOLLOW)?)
}

fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to).inspect_err(|_| {
        let _ = fs::remove_file(from);
    })
}

/// Removes hidden files whose maker is gone: nobody holds their lock.
fn remove_abandoned(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if !name.as_encoded_bytes().ends_with(SUFFIX.as_bytes()) || !name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let path = entry.path();
        let open = File::options().read(true).write(true).custom_flags(OFlag::O_NOFOLLOW.bits()).open(&path);
        let Ok(file) = open else { continue };
        if Flock::lock(file, FlockArg::LockExclusiveNonblock).is_ok() && fs::remove_file(&path).is_ok() {
            log::info!("removed {}: who wrote it is gone", path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Does what [`PartFile::create`] does where there is no `O_TMPFILE`.
    fn with_a_name(path: &Path) -> PartFile {
        remove_abandoned(directory(path));
        PartFile { path: path.to_owned(), held: Some(named(path).unwrap()) }
    }

    #[test]
    fn a_part_file_takes_its_name_when_it_is_whole_and_replaces_what_had_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        for (create, text) in
            [(PartFile::create as fn(&Path) -> io::Result<PartFile>, "one"), (|path| Ok(with_a_name(path)), "two")]
        {
            for _ in 0..2 {
                let part = create(&path).unwrap();
                part.file().write_all(text.as_bytes()).unwrap();
                part.publish().unwrap();
                assert_eq!(fs::read_to_string(&path).unwrap(), text);
                assert_eq!(names(dir.path()), ["out"]);
            }
            drop(create(&path).unwrap());
            assert_eq!(
                (names(dir.path()), fs::read_to_string(&path).unwrap()),
                (vec!["out".to_owned()], text.to_owned())
            );
        }
    }

    #[test]
    fn a_file_without_a_name_shows_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let part = PartFile::create(&dir.path().join("out")).unwrap();
        part.file().set_len(1 << 20).unwrap();
        assert_eq!(names(dir.path()), Vec::<String>::new());
    }

    #[test]
    fn what_a_killed_maker_left_is_removed_by_the_next_and_what_a_living_one_writes_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        let living = with_a_name(&path);
        // As kill -9 leaves it: the name stays, the lock goes.
        fs::write(dir.path().join(format!(".other.1-0{SUFFIX}")), [0; 100]).unwrap();
        fs::write(dir.path().join(format!("mine{SUFFIX}")), b"not hidden, so not ours").unwrap();
        let next = PartFile::create(&path).unwrap();
        assert_eq!(names(dir.path()).len(), 2, "{:?}", names(dir.path()));
        next.publish().unwrap();
        living.publish().unwrap();
        assert_eq!(names(dir.path()), [format!("mine{SUFFIX}"), "out".to_owned()]);
    }
}
