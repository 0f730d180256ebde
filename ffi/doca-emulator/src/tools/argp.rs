//! `doca_argp`: command lines the way DOCA programs have them.
//!
//! `-x value`, `--long value`, `--long=value`; a boolean takes no value. Every program also knows `-h`, `-v`,
//! `-l`/`--log-level` and `--sdk-log-level`. JSON files (`-j`) and commands are refused with `NOT_SUPPORTED`.
//!
//! One set of parameters per process, as in the original, used from one thread.

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;
use std::process;
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::ffi::abi::{
    doca_argp_param, doca_argp_param_cb_t, doca_argp_type, doca_argp_validation_cb_t, doca_error,
    doca_log_level_get_global_lower_limit, doca_log_level_get_global_sdk_limit, doca_version_runtime,
};
use crate::ffi::{Answer, Enter, Fault, Handle, Object, Out, Stamp, Text, complain, exports};
use crate::tools::log;

#[repr(C)]
pub(crate) struct Param {
    stamp: Stamp,
    short: RefCell<String>,
    long: RefCell<String>,
    arguments: RefCell<String>,
    description: RefCell<String>,
    callback: Cell<doca_argp_param_cb_t>,
    kind: Cell<doca_argp_type>,
    is_mandatory: Cell<bool>,
    is_multiple: Cell<bool>,
    is_registered: Cell<bool>,
    times_given: Cell<u32>,
}

// SAFETY: repr(C), and the stamp comes first.
unsafe impl Object for Param {
    type Opaque = doca_argp_param;
    const MAGIC: u64 = u64::from_le_bytes(*b"kvl-argp");
}

impl Param {
    fn new() -> Param {
        Param {
            stamp: Stamp::new(Param::MAGIC),
            short: RefCell::default(),
            long: RefCell::default(),
            arguments: RefCell::default(),
            description: RefCell::default(),
            callback: Cell::new(None),
            kind: Cell::new(doca_argp_type::DOCA_ARGP_TYPE_UNKNOWN),
            is_mandatory: Cell::new(false),
            is_multiple: Cell::new(false),
            is_registered: Cell::new(false),
            times_given: Cell::new(0),
        }
    }

    fn is_switch(&self) -> bool {
        self.kind.get() == doca_argp_type::DOCA_ARGP_TYPE_BOOLEAN
    }

    /// Name by which messages call the parameter.
    fn name(&self) -> String {
        let (short, long) = (self.short.borrow(), self.long.borrow());
        if long.is_empty() { format!("-{short}") } else { format!("--{long}") }
    }

    /// Hands a value to the program.
    fn give(&self, value: &str, config: *mut c_void) -> Answer {
        if self.times_given.replace(self.times_given.get() + 1) > 0 && !self.is_multiple.get() {
            return Err(blame(&format!("{} is given twice", self.name())));
        }
        let Some(callback) = self.callback.get() else { return Ok(()) };
        // SAFETY: the program's function, which takes a pointer to a value of the kind that it asked for, writable and
        // there for the call, and the pointer that it gave to init.
        let answer = unsafe {
            match self.kind.get() {
                doca_argp_type::DOCA_ARGP_TYPE_BOOLEAN => callback(ptr::from_mut(&mut true).cast(), config),
                doca_argp_type::DOCA_ARGP_TYPE_INT => {
                    let number = value.parse::<c_int>();
                    let mut number = number.map_err(|_| blame(&format!("{} {value}: wanted a number", self.name())))?;
                    callback(ptr::from_mut(&mut number).cast(), config)
                }
                _ => {
                    let text = CString::new(value).map_err(|_| Fault::DOCA_ERROR_INVALID_VALUE)?;
                    let text = text.into_raw();
                    let answer = callback(text.cast(), config);
                    drop(CString::from_raw(text));
                    answer
                }
            }
        };
        if answer == doca_error::DOCA_SUCCESS { Ok(()) } else { Err(answer) }
    }
}

struct Program {
    name: String,
    config: *mut c_void,
    params: Vec<Handle<Param>>,
    version: doca_argp_param_cb_t,
    validations: Vec<doca_argp_validation_cb_t>,
}

// SAFETY: pointers that are only passed back to the program, from the thread that it calls us on.
unsafe impl Send for Program {}

static PROGRAM: Mutex<Option<Program>> = Mutex::new(None);

fn lock() -> MutexGuard<'static, Option<Program>> {
    PROGRAM.lock().unwrap_or_else(PoisonError::into_inner)
}

fn with<R>(use_it: impl FnOnce(&mut Program) -> Result<R, Fault>) -> Result<R, Fault> {
    use_it(lock().as_mut().ok_or(Fault::DOCA_ERROR_BAD_STATE)?)
}

fn blame(what: &str) -> Fault {
    complain(what);
    Fault::DOCA_ERROR_INVALID_VALUE
}

const BUILT_IN: [(&str, &str, &str); 4] = [
    ("h", "help", "this text"),
    ("v", "version", "versions of the program and of the library"),
    ("l", "log-level", "10 nothing, 20 critical, 30 error, 40 warning, 50 info, 60 debug, 70 trace"),
    ("", "sdk-log-level", "the same, for the library's own lines"),
];

impl Program {
    fn usage(&self) -> String {
        let mut text = format!("Usage: {} [options]\n\n", self.name);
        let mut line = |short: &str, long: &str, arguments: &str, description: &str| {
            let short = if short.is_empty() { "    ".to_owned() } else { format!("-{short}, ") };
            let option = if long.is_empty() { short } else { format!("{short}--{long} {arguments}") };
            text.push_str(&format!("  {option:<32}  {description}\n"));
        };
        for (short, long, description) in BUILT_IN {
            line(short, long, "", description);
        }
        for param in &self.params {
            let mut description = param.description.borrow().clone();
            if param.is_mandatory.get() {
                description.push_str(" (required)");
            }
            line(&param.short.borrow(), &param.long.borrow(), &param.arguments.borrow(), &description);
        }
        text
    }

    fn find(&self, name: &str, is_long: bool) -> Option<Handle<Param>> {
        let is_it = |param: &&Handle<Param>| {
            let its = if is_long { param.long.borrow() } else { param.short.borrow() };
            *its == name && !its.is_empty()
        };
        self.params.iter().find(is_it).copied()
    }
}

/// What the command line asks for, in order.
enum Step {
    Help,
    Version,
    LogLevel(String),
    SdkLogLevel(String),
    Give(Handle<Param>, String),
}

/// Takes the command line apart without calling anybody.
fn plan(program: &Program, arguments: &[String]) -> Result<Vec<Step>, Fault> {
    let mut steps = Vec::new();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let (name, is_long) = match (argument.strip_prefix("--"), argument.strip_prefix('-')) {
            (Some(long), _) => (long, true),
            (None, Some(short)) if !short.is_empty() => (short, false),
            _ => return Err(blame(&format!("`{argument}` is not an option"))),
        };
        let (name, attached) = match name.split_once('=') {
            Some((name, value)) if is_long => (name, Some(value.to_owned())),
            _ => (name, None),
        };
        let mut value = || {
            let value = attached.clone().or_else(|| rest.next().cloned());
            value.ok_or_else(|| blame(&format!("{argument} wants a value")))
        };
        // The program's own come first: some reuse a letter.
        steps.push(match program.find(name, is_long) {
            Some(param) if param.is_switch() => Step::Give(param, String::new()),
            Some(param) => Step::Give(param, value()?),
            None => match (name, is_long) {
                ("help", true) | ("h", false) => Step::Help,
                ("version", true) | ("v", false) => Step::Version,
                ("log-level", true) | ("l", false) => Step::LogLevel(value()?),
                ("sdk-log-level", true) => Step::SdkLogLevel(value()?),
                ("json", true) | ("j", false) => {
                    complain("JSON files of options are not supported");
                    return Err(Fault::DOCA_ERROR_NOT_SUPPORTED);
                }
                _ => return Err(blame(&format!("unknown option {argument}"))),
            },
        });
    }
    Ok(steps)
}

fn start(arguments: &[String]) -> Answer {
    // The lock is not held while the program's functions run: they may ask for our usage.
    let (config, version, validations, params, steps) = with(|program| {
        let steps = plan(program, arguments)?;
        Ok((program.config, program.version, program.validations.clone(), program.params.clone(), steps))
    })?;
    for step in steps {
        match step {
            Step::Help => {
                print!("{}", with(|program| Ok(program.usage()))?);
                process::exit(0);
            }
            Step::Version => {
                if let Some(version) = version {
                    // SAFETY: the program's function, called as a parameter's.
                    unsafe { version(ptr::null_mut(), config) };
                } else {
                    // SAFETY: our own static text.
                    let ours = unsafe { CStr::from_ptr(doca_version_runtime()) };
                    println!("library {}", ours.to_string_lossy());
                }
                process::exit(0);
            }
            Step::LogLevel(text) => log::set_levels(Some(level(&text)?), None)?,
            Step::SdkLogLevel(text) => log::set_levels(None, Some(level(&text)?))?,
            Step::Give(param, value) => param.give(&value, config)?,
        }
    }
    if let Some(missing) = params.iter().find(|param| param.is_mandatory.get() && param.times_given.get() == 0) {
        return Err(blame(&format!("{} is required", missing.name())));
    }
    for validation in validations.into_iter().flatten() {
        // SAFETY: the program's function with the pointer that it gave to init.
        let answer = unsafe { validation(config) };
        if answer != doca_error::DOCA_SUCCESS {
            return Err(answer);
        }
    }
    Ok(())
}

fn level(text: &str) -> Result<u32, Fault> {
    text.parse().map_err(|_| blame(&format!("log level {text}: wanted a number")))
}

/// The command line behind the program's name.
struct Arguments(Vec<String>);

impl Enter<(c_int, *mut *mut c_char)> for Arguments {
    unsafe fn enter((argc, argv): (c_int, *mut *mut c_char)) -> Result<Self, Fault> {
        let count = usize::try_from(argc).map_err(|_| Fault::DOCA_ERROR_INVALID_VALUE)?;
        if argv.is_null() {
            return Err(Fault::DOCA_ERROR_INVALID_VALUE);
        }
        let mut arguments = Vec::new();
        for index in 1..count {
            // SAFETY: the caller passes `argc` pointers to strings, as main got them.
            let text = unsafe { Text::enter((*argv.add(index)).cast_const()) }?;
            arguments.push(text.0);
        }
        Ok(Arguments(arguments))
    }
}

/// This process's name, for programs that do not say theirs.
fn own_name() -> String {
    let path = std::env::args_os().next().unwrap_or_default();
    Path::new(&path).file_name().map_or_else(|| "program".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// A name or a description; null leaves it empty.
struct Words(String);

impl Enter<*const c_char> for Words {
    unsafe fn enter(raw: *const c_char) -> Result<Self, Fault> {
        // SAFETY: our contract is the callee's.
        Ok(Words(unsafe { Text::enter(raw) }.map_or_else(|_| String::new(), |text| text.0)))
    }
}

exports! {
    fn doca_argp_init(program_name: *const c_char => Words, program_config: *mut c_void) {
        let mut program = lock();
        if program.is_some() {
            return Err(Fault::DOCA_ERROR_ALREADY_EXIST);
        }
        let name = if program_name.0.is_empty() { own_name() } else { program_name.0 };
        let config = program_config;
        *program = Some(Program { name, config, params: Vec::new(), version: None, validations: Vec::new() });
        Ok(())
    }

    fn doca_argp_start(argc: c_int, argv: *mut *mut c_char) {
        // SAFETY: main's own arguments, by the header.
        let arguments = unsafe { Arguments::enter((argc, argv)) }?;
        start(&arguments.0)
    }

    fn doca_argp_destroy() {
        let program = lock().take().ok_or(Fault::DOCA_ERROR_BAD_STATE)?;
        for param in program.params {
            // SAFETY: registered, so it is ours, and this is the last of it.
            unsafe { param.destroy() };
        }
        Ok(())
    }

    fn doca_argp_usage() -> () = (()) {
        if let Some(program) = &*lock() {
            print!("{}", program.usage());
        }
    }

    fn doca_argp_param_create(param: *mut *mut doca_argp_param => Out<*mut doca_argp_param>) {
        param.put(Handle::new(Param::new()).to_c());
        Ok(())
    }

    fn doca_argp_param_destroy(param: *mut doca_argp_param => Handle<Param>) {
        if param.is_registered.get() {
            return Err(Fault::DOCA_ERROR_NOT_PERMITTED);
        }
        // SAFETY: not registered, so only the caller has it, who gives it up.
        unsafe { param.destroy() };
        Ok(())
    }

    fn doca_argp_param_set_short_name(param: *mut doca_argp_param => Handle<Param>, name: *const c_char => Words)
        -> () = (complain("doca_argp_param_set_short_name: not a parameter"))
    {
        param.short.replace(name.0);
    }

    fn doca_argp_param_set_long_name(param: *mut doca_argp_param => Handle<Param>, name: *const c_char => Words)
        -> () = (complain("doca_argp_param_set_long_name: not a parameter"))
    {
        param.long.replace(name.0);
    }

    fn doca_argp_param_set_arguments(param: *mut doca_argp_param => Handle<Param>, arguments: *const c_char => Words)
        -> () = (complain("doca_argp_param_set_arguments: not a parameter"))
    {
        param.arguments.replace(arguments.0);
    }

    fn doca_argp_param_set_description(
        param: *mut doca_argp_param => Handle<Param>,
        description: *const c_char => Words,
    ) -> () = (complain("doca_argp_param_set_description: not a parameter")) {
        param.description.replace(description.0);
    }

    fn doca_argp_param_set_callback(
        param: *mut doca_argp_param => Handle<Param>,
        callback: doca_argp_param_cb_t,
    ) -> () = (complain("doca_argp_param_set_callback: not a parameter")) {
        param.callback.set(callback);
    }

    fn doca_argp_param_set_type(param: *mut doca_argp_param => Handle<Param>, kind: doca_argp_type)
        -> () = (complain("doca_argp_param_set_type: not a parameter"))
    {
        param.kind.set(kind);
    }

    fn doca_argp_param_set_mandatory(param: *mut doca_argp_param => Handle<Param>)
        -> () = (complain("doca_argp_param_set_mandatory: not a parameter"))
    {
        param.is_mandatory.set(true);
    }

    fn doca_argp_param_set_cli_only(param: *mut doca_argp_param => Handle<Param>)
        -> () = (complain("doca_argp_param_set_cli_only: not a parameter"))
    {
        let _ = param;
    }

    fn doca_argp_param_set_multiplicity(param: *mut doca_argp_param => Handle<Param>)
        -> () = (complain("doca_argp_param_set_multiplicity: not a parameter"))
    {
        param.is_multiple.set(true);
    }

    fn doca_argp_register_param(input_param: *mut doca_argp_param => Handle<Param>) {
        let known = [
            doca_argp_type::DOCA_ARGP_TYPE_STRING,
            doca_argp_type::DOCA_ARGP_TYPE_INT,
            doca_argp_type::DOCA_ARGP_TYPE_BOOLEAN,
        ];
        let has_name = !input_param.short.borrow().is_empty() || !input_param.long.borrow().is_empty();
        if !has_name || !known.contains(&input_param.kind.get()) || input_param.is_registered.get() {
            return Err(Fault::DOCA_ERROR_INVALID_VALUE);
        }
        with(|program| {
            let taken = program.find(&input_param.short.borrow(), false).is_some()
                || program.find(&input_param.long.borrow(), true).is_some();
            if taken {
                return Err(Fault::DOCA_ERROR_ALREADY_EXIST);
            }
            input_param.is_registered.set(true);
            program.params.push(input_param);
            Ok(())
        })
    }

    fn doca_argp_register_version_callback(callback: doca_argp_param_cb_t) {
        with(|program| {
            program.version = callback;
            Ok(())
        })
    }

    fn doca_argp_register_validation_callback(callback: doca_argp_validation_cb_t) {
        with(|program| {
            program.validations.push(callback);
            Ok(())
        })
    }

    fn doca_argp_get_log_level(log_level: *mut c_int => Out<c_int>) {
        // SAFETY: takes nothing.
        log_level.put(unsafe { doca_log_level_get_global_lower_limit() } as c_int);
        Ok(())
    }

    fn doca_argp_get_sdk_log_level(log_level: *mut c_int => Out<c_int>) {
        // SAFETY: takes nothing.
        log_level.put(unsafe { doca_log_level_get_global_sdk_limit() } as c_int);
        Ok(())
    }
}
