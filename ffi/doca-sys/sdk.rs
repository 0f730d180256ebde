//! Finds the installed DOCA SDK; a part of `build.rs`, in a file of its own so that `tests/sdk.rs` can hold its
//! answers.
//!
//! `DOCA_DIR` names the SDK's directory (`/opt/mellanox/doca`, or a copy of the card's for a cross build) and wins.
//! Without it pkg-config knows the SDK or there is none. All modules have to be there and of one version, with the
//! headers and libraries that they promise. Whatever is missing is one line that says what to do; nothing is guessed.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The SDK's pkg-config modules that carry the functions of our headers.
pub(crate) const MODULES: &[&str] = &["doca-common", "doca-compress", "doca-dma", "doca-comch"];

/// First version with the names that we use: `doca_comch_*`, and a task type for each form of LZ4.
const VERSION_MIN: (u32, u32) = (2, 7);

/// What decides where the SDK is: the environment of the build.
#[derive(Debug)]
pub(crate) struct Search {
    pub(crate) doca_dir: Option<PathBuf>,
    pub(crate) target: String,
    pub(crate) host: String,
    pub(crate) pkg_config: OsString,
    /// `PKG_CONFIG_PATH` and `PKG_CONFIG_LIBDIR`.
    pub(crate) path: Option<OsString>,
    pub(crate) libdir: Option<OsString>,
}

/// An SDK that can be built against.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Sdk {
    /// As the headers say it, e.g. `2.10.0087`.
    pub(crate) version: String,
    pub(crate) pc_directory: PathBuf,
    pub(crate) include_paths: Vec<PathBuf>,
    pub(crate) library_paths: Vec<PathBuf>,
    pub(crate) libraries: Vec<String>,
}

impl Search {
    /// The variables that [`Search::from_env`] reads, for cargo to watch.
    pub(crate) const VARIABLES: &[&str] =
        &["DOCA_DIR", "PKG_CONFIG", "PKG_CONFIG_PATH", "PKG_CONFIG_LIBDIR", "PKG_CONFIG_SYSROOT_DIR"];

    pub(crate) fn from_env() -> Self {
        let given = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
        let cargo = |name: &str| env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"));
        Self {
            doca_dir: given("DOCA_DIR").map(PathBuf::from),
            target: cargo("TARGET"),
            host: cargo("HOST"),
            pkg_config: given("PKG_CONFIG").unwrap_or_else(|| "pkg-config".into()),
            path: given("PKG_CONFIG_PATH"),
            libdir: given("PKG_CONFIG_LIBDIR"),
        }
    }

    /// # Errors
    /// One line: what is missing or does not fit, where it was looked for, what to do.
    pub(crate) fn find(&self, headers: &[&str]) -> Result<Sdk, String> {
        if self.target != self.host && self.doca_dir.is_none() && self.libdir.is_none() {
            return Err(format!(
                "a build for {} cannot use this machine's DOCA SDK: set DOCA_DIR to a copy of the card's /opt/mellanox/doca",
                self.target
            ));
        }
        let own = self.doca_dir.as_deref().map(|dir| self.pc_directory(dir)).transpose()?;
        let ask = |arguments: &[&str]| self.ask(own.as_deref(), arguments);
        let mut versions = Vec::new();
        for module in MODULES {
            let version = ask(&["--modversion", module]).map_err(|why| self.unknown(module, &why))?;
            versions.push((*module, version));
        }
        let announced = one_version(&versions)?;
        let pc_directory =
            PathBuf::from(ask(&["--variable=pcfiledir", MODULES[0]]).map_err(|why| self.unknown(MODULES[0], &why))?);
        let flags = |kind: &str| {
            let arguments: Vec<&str> = [&[kind][..], MODULES].concat();
            ask(&arguments).map_err(|why| self.unknown(MODULES[0], &why))
        };
        let (cflags, libs) = (flags("--cflags")?, flags("--libs")?);
        let with = |text: &str, flag: &str| -> Vec<String> {
            let mut found: Vec<String> =
                text.split_whitespace().filter_map(|word| word.strip_prefix(flag)).map(str::to_owned).collect();
            found.dedup();
            found
        };
        let paths = |flag, text| with(text, flag).into_iter().map(PathBuf::from).collect::<Vec<_>>();
        let sdk = Sdk {
            version: announced.to_owned(),
            pc_directory,
            include_paths: paths("-I", &cflags),
            library_paths: paths("-L", &libs),
            libraries: with(&libs, "-l"),
        };
        sdk.checked(headers)
    }

    /// The pkgconfig directory of an SDK that was named: of the target's architecture, or of a layout without one.
    fn pc_directory(&self, doca_dir: &Path) -> Result<PathBuf, String> {
        if doca_dir.is_relative() {
            return Err(format!(
                "DOCA_DIR is {}: make it absolute, cargo builds in another directory",
                doca_dir.display()
            ));
        }
        let mut triplet: Vec<&str> = self.target.split('-').collect();
        if triplet.len() == 4 {
            triplet.remove(1); // x86_64-unknown-linux-gnu -> x86_64-linux-gnu, as distributions spell it
        }
        let candidates =
            [format!("lib/{}/pkgconfig", triplet.join("-")), "lib64/pkgconfig".into(), "lib/pkgconfig".into()];
        let found = candidates
            .iter()
            .map(|candidate| doca_dir.join(candidate))
            .find(|dir| dir.join("doca-common.pc").is_file());
        found.ok_or_else(|| {
            format!(
                "DOCA_DIR is {}, but doca-common.pc is in none of its {}: name the directory of an SDK for {}",
                doca_dir.display(),
                candidates.join(", "),
                self.target
            )
        })
    }

    fn ask(&self, own: Option<&Path>, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new(&self.pkg_config);
        let mut path = self.path.clone().unwrap_or_default();
        if let (Some(own), Some(doca_dir)) = (own, &self.doca_dir) {
            let rest = env::split_paths(&path).filter(|path| !path.as_os_str().is_empty()).collect::<Vec<_>>();
            path = env::join_paths([own.to_path_buf()].into_iter().chain(rest)).map_err(|err| err.to_string())?;
            // An SDK that was copied still names its old place; the new one is whole, so nothing goes in front of it.
            command
                .env_remove("PKG_CONFIG_SYSROOT_DIR")
                .arg(format!("--define-variable=prefix={}", doca_dir.display()));
        }
        command.env("PKG_CONFIG_PATH", path);
        match &self.libdir {
            Some(libdir) => command.env("PKG_CONFIG_LIBDIR", libdir),
            None => command.env_remove("PKG_CONFIG_LIBDIR"),
        };
        let output = command.args(arguments).output();
        let output = output.map_err(|err| format!("`{}` could not be run: {err}", self.pkg_config.display()))?;
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
            false => {
                Err(String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or("no reason given").to_owned())
            }
        }
    }

    fn unknown(&self, module: &str, why: &str) -> String {
        let cure = match &self.doca_dir {
            Some(dir) => format!("install its development package in {}", dir.display()),
            None => String::from(
                "install the SDK's development packages, or name the SDK with DOCA_DIR or PKG_CONFIG_PATH, \
                 or build the default feature `emulator`",
            ),
        };
        format!("no DOCA SDK module `{module}`: {cure} ({why})")
    }
}

impl Sdk {
    /// Holds the promises of the pkg-config files against what is on disk.
    fn checked(mut self, headers: &[&str]) -> Result<Self, String> {
        let list =
            |paths: &[PathBuf]| paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
        if let Some(said) = self.include_paths.iter().find_map(|path| version_of_headers(path)) {
            if major_minor(&said) != major_minor(&self.version) {
                return Err(format!(
                    "the DOCA SDK's headers are of version {said}, its pkg-config files of {}: install one SDK whole",
                    self.version
                ));
            }
            self.version = said;
        }
        match major_minor(&self.version) {
            None => return Err(format!("the DOCA SDK calls its version `{}`, which is none", self.version)),
            Some(version) if version < VERSION_MIN => {
                return Err(format!(
                    "the DOCA SDK is of version {}, kvlane needs {}.{} or newer",
                    self.version, VERSION_MIN.0, VERSION_MIN.1
                ));
            }
            Some(_) => {}
        }
        // Paths that a compiler searches anyway are not among pkg-config's flags.
        if !self.include_paths.is_empty() {
            for header in headers {
                if !self.include_paths.iter().any(|path| path.join(header).is_file()) {
                    return Err(format!(
                        "the DOCA SDK {} has no {header} in {}: install its development packages",
                        self.version,
                        list(&self.include_paths)
                    ));
                }
            }
        }
        if !self.library_paths.is_empty() {
            for library in self.libraries.iter().filter(|library| library.starts_with("doca_")) {
                let there = |path: &PathBuf| path.join(format!("lib{library}.so")).exists();
                if !self.library_paths.iter().any(there) {
                    return Err(format!(
                        "the DOCA SDK {} has no lib{library}.so in {}: install its development packages",
                        self.version,
                        list(&self.library_paths)
                    ));
                }
            }
        }
        Ok(self)
    }
}

/// The version that all modules have.
fn one_version<'a>(versions: &'a [(&str, String)]) -> Result<&'a str, String> {
    let (_, first) = &versions[0];
    match versions.iter().find(|(_, version)| version != first) {
        None => Ok(first),
        Some(_) => {
            let all: Vec<String> = versions.iter().map(|(module, version)| format!("{module} {version}")).collect();
            Err(format!("the DOCA SDK's modules are of different versions: {}: install one SDK whole", all.join(", ")))
        }
    }
}

fn version_of_headers(include: &Path) -> Option<String> {
    let text = std::fs::read_to_string(include.join("doca_version.h")).ok()?;
    let line = text.lines().find(|line| line.trim_start().starts_with("#define DOCA_VERSION_STRING"))?;
    line.split('"').nth(1).map(str::to_owned)
}

fn major_minor(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}
