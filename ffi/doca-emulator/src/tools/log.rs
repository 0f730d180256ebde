//! `doca_log`: sources, backends, levels. The variadic call itself is in `log.c`.
//!
//! A line goes to every backend of the program whose limit lets it through. Backends of the library (`.._sdk`) are kept
//! and take their levels, but get no lines: the emulator says what it has to say on standard error.

use std::ffi::{CStr, CString, c_char, c_int};
use std::mem;
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::ffi::abi::{FILE, doca_log_backend, doca_log_level, log_flush_callback};
use crate::ffi::error::code;
use crate::ffi::{Answer, Fault, Handle, Object, Out, Stamp, Text, exports};

const INFO: u32 = doca_log_level::DOCA_LOG_LEVEL_INFO.0;
const WARNING: u32 = doca_log_level::DOCA_LOG_LEVEL_WARNING.0;
const TRACE: u32 = doca_log_level::DOCA_LOG_LEVEL_TRACE.0;
const DISABLE: u32 = doca_log_level::DOCA_LOG_LEVEL_DISABLE.0;

static LOWER: AtomicU32 = AtomicU32::new(INFO);
static UPPER: AtomicU32 = AtomicU32::new(TRACE);
static SDK: AtomicU32 = AtomicU32::new(WARNING);
static SOURCES: Mutex<Vec<Option<String>>> = Mutex::new(Vec::new());
static BACKENDS: Mutex<Vec<Listed>> = Mutex::new(Vec::new());

/// A backend in the list of all. They are never freed, as the interface has no call for that.
struct Listed(Handle<LogBackend>);

// SAFETY: a backend is used under the lock of `BACKENDS` only, apart from its levels, which are atomic.
unsafe impl Send for Listed {}

/// Destination of the lines of a backend.
enum Sink {
    File(*mut libc::FILE),
    /// Warnings and worse to standard error, the rest to standard output.
    Standard,
    Fd(c_int),
    Buf {
        first: *mut u8,
        capacity: usize,
        used: usize,
        flush: log_flush_callback,
    },
    Syslog,
}

#[repr(C)]
pub(crate) struct LogBackend {
    stamp: Stamp,
    sink: Mutex<Sink>,
    is_sdk: bool,
    lower: AtomicU32,
    upper: AtomicU32,
}

// SAFETY: repr(C), and the stamp comes first.
unsafe impl Object for LogBackend {
    type Opaque = doca_log_backend;
    const MAGIC: u64 = u64::from_le_bytes(*b"kvl-logb");
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn add(sink: Sink, is_sdk: bool) -> *mut doca_log_backend {
    let backend = Handle::new(LogBackend {
        stamp: Stamp::new(LogBackend::MAGIC),
        sink: Mutex::new(sink),
        is_sdk,
        lower: AtomicU32::new(if is_sdk { SDK.load(Ordering::Relaxed) } else { LOWER.load(Ordering::Relaxed) }),
        upper: AtomicU32::new(UPPER.load(Ordering::Relaxed)),
    });
    lock(&BACKENDS).push(Listed(backend));
    backend.to_c()
}

impl LogBackend {
    fn wants(&self, level: u32) -> bool {
        let limit = self.lower.load(Ordering::Relaxed).min(self.upper.load(Ordering::Relaxed));
        !self.is_sdk && level > DISABLE && level <= limit
    }

    fn write(&self, level: u32, line: &[u8]) {
        match &mut *lock(&self.sink) {
            // SAFETY: the program's open file, by its word at create; stdio locks it.
            Sink::File(file) => unsafe {
                libc::fwrite(line.as_ptr().cast(), 1, line.len(), *file);
                libc::fflush(*file);
            },
            Sink::Standard => put_fd(if level <= WARNING { 2 } else { 1 }, line),
            Sink::Fd(fd) => put_fd(*fd, line),
            Sink::Buf { first, capacity, used, flush } => {
                let line = &line[..line.len().min(*capacity - 1)];
                if *used + line.len() >= *capacity {
                    if let Some(flush) = flush {
                        // SAFETY: the program's function, with its own buffer, which holds text that ends.
                        unsafe { flush(first.cast()) };
                    }
                    *used = 0;
                }
                // SAFETY: the program's buffer of `capacity` bytes; the text and its end fit, as just made sure.
                unsafe {
                    first.add(*used).copy_from_nonoverlapping(line.as_ptr(), line.len());
                    *first.add(*used + line.len()) = 0;
                }
                *used += line.len();
            }
            Sink::Syslog => {
                let priority = if level <= WARNING { libc::LOG_WARNING } else { libc::LOG_INFO };
                if let Ok(text) = CString::new(line) {
                    // SAFETY: two strings that end, the first of which says that the second is all there is.
                    unsafe { libc::syslog(priority, c"%s".as_ptr(), text.as_ptr()) };
                }
            }
        }
    }
}

/// One write per line, so that lines of several processes do not mix; what does not go out is lost.
fn put_fd(fd: c_int, line: &[u8]) {
    // SAFETY: bytes of our own with their length.
    let _ = unsafe { libc::write(fd, line.as_ptr().cast(), line.len()) };
}

fn short(level: u32) -> &'static str {
    match doca_log_level(level) {
        doca_log_level::DOCA_LOG_LEVEL_CRIT => "CRT",
        doca_log_level::DOCA_LOG_LEVEL_ERROR => "ERR",
        doca_log_level::DOCA_LOG_LEVEL_WARNING => "WRN",
        doca_log_level::DOCA_LOG_LEVEL_INFO => "INF",
        doca_log_level::DOCA_LOG_LEVEL_DEBUG => "DBG",
        _ => "TRC",
    }
}

/// `[hour:minute:second:microsecond]`, local time.
fn clock() -> String {
    // SAFETY: plain structures of integers, for which zeroes are values; the calls fill them in.
    let (time, parts) = unsafe {
        let mut time: libc::timespec = mem::zeroed();
        libc::clock_gettime(libc::CLOCK_REALTIME, &mut time);
        let mut parts: libc::tm = mem::zeroed();
        libc::localtime_r(&time.tv_sec, &mut parts);
        (time, parts)
    };
    format!("[{:02}:{:02}:{:02}:{:06}]", parts.tm_hour, parts.tm_min, parts.tm_sec, time.tv_nsec / 1000)
}

/// Called by `log.c`.
///
/// # Safety
/// `func` is null or a string that ends, `text` is one.
#[unsafe(no_mangle)]
unsafe extern "C" fn doca_emulator_log_line(
    level: u32,
    source: c_int,
    line: c_int,
    func: *const c_char,
    text: *const c_char,
) -> crate::ffi::abi::doca_error {
    let say = |text: *const c_char| match text.is_null() {
        true => String::new(),
        // SAFETY: by the caller's word.
        false => unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned(),
    };
    let name = usize::try_from(source).ok().and_then(|index| lock(&SOURCES).get(index).cloned().flatten());
    let Some(name) = name else { return code(Err(Fault::DOCA_ERROR_INVALID_VALUE)) };
    let (stamp, pid, level_name) = (clock(), process::id(), short(level));
    let whole = format!("{stamp}[{pid}][DOCA][{level_name}][{name}:{line}][{}] {}\n", say(func), say(text));
    for Listed(backend) in lock(&BACKENDS).iter().filter(|listed| listed.0.wants(level)) {
        backend.write(level, whole.as_bytes());
    }
    code(Ok(()))
}

/// Called by `log.c`: formatting is not free.
#[unsafe(no_mangle)]
extern "C" fn doca_emulator_log_wants(level: u32) -> c_int {
    c_int::from(lock(&BACKENDS).iter().any(|listed| listed.0.wants(level)))
}

/// Any level that the header names.
fn level(value: u32) -> Result<u32, Fault> {
    let known = (DISABLE..=TRACE).contains(&value) && value.is_multiple_of(10);
    if known { Ok(value) } else { Err(Fault::DOCA_ERROR_INVALID_VALUE) }
}

fn set_all(is_sdk: bool, value: u32, which: impl Fn(&LogBackend) -> &AtomicU32) {
    for Listed(backend) in lock(&BACKENDS).iter().filter(|listed| listed.0.is_sdk == is_sdk) {
        which(backend).store(value, Ordering::Relaxed);
    }
}

/// `--log-level` and `--sdk-log-level` of `doca_argp`.
pub(crate) fn set_levels(program: Option<u32>, library: Option<u32>) -> Answer {
    if let Some(value) = program {
        LOWER.store(level(value)?, Ordering::Relaxed);
        set_all(false, value, |backend| &backend.lower);
    }
    if let Some(value) = library {
        SDK.store(level(value)?, Ordering::Relaxed);
        set_all(true, value, |backend| &backend.lower);
    }
    Ok(())
}

fn file(fptr: *mut FILE) -> Result<Sink, Fault> {
    if fptr.is_null() { Err(Fault::DOCA_ERROR_INVALID_VALUE) } else { Ok(Sink::File(fptr.cast())) }
}

fn fd(fd: c_int) -> Result<Sink, Fault> {
    if fd < 0 { Err(Fault::DOCA_ERROR_INVALID_VALUE) } else { Ok(Sink::Fd(fd)) }
}

fn buf(first: *mut c_char, capacity: usize, flush: log_flush_callback) -> Result<Sink, Fault> {
    if first.is_null() || capacity < 2 || flush.is_none() {
        return Err(Fault::DOCA_ERROR_INVALID_VALUE);
    }
    Ok(Sink::Buf { first: first.cast(), capacity, used: 0, flush })
}

fn syslog(name: &str) -> Result<Sink, Fault> {
    let name = CString::new(name).map_err(|_| Fault::DOCA_ERROR_INVALID_VALUE)?;
    // SAFETY: syslog keeps the pointer for good, so the string is leaked.
    unsafe { libc::openlog(Box::leak(name.into_boxed_c_str()).as_ptr(), libc::LOG_PID, libc::LOG_USER) };
    Ok(Sink::Syslog)
}

exports! {
    fn doca_log_backend_create_standard() {
        let mut backends = lock(&BACKENDS);
        let is_standard = |listed: &Listed| matches!(&*lock(&listed.0.sink), Sink::Standard);
        if backends.iter_mut().any(|listed| is_standard(listed)) {
            return Err(Fault::DOCA_ERROR_ALREADY_EXIST);
        }
        drop(backends);
        add(Sink::Standard, false);
        Ok(())
    }

    fn doca_log_backend_create_with_file(
        fptr: *mut FILE,
        backend: *mut *mut doca_log_backend => Out<*mut doca_log_backend>,
    ) {
        backend.put(add(file(fptr)?, false));
        Ok(())
    }

    fn doca_log_backend_create_with_file_sdk(
        fptr: *mut FILE,
        backend: *mut *mut doca_log_backend => Out<*mut doca_log_backend>,
    ) {
        backend.put(add(file(fptr)?, true));
        Ok(())
    }

    fn doca_log_backend_create_with_fd(
        descriptor: c_int,
        backend: *mut *mut doca_log_backend => Out<*mut doca_log_backend>,
    ) {
        backend.put(add(fd(descriptor)?, false));
        Ok(())
    }

    fn doca_log_backend_create_with_fd_sdk(
        descriptor: c_int,
        backend: *mut *mut doca_log_backend => Out<*mut doca_log_backend>,
    ) {
        backend.put(add(fd(descriptor)?, true));
        Ok(())
    }

    fn doca_log_backend_create_with_buf(
        first: *mut c_char,
        capacity: usize,
        handler: log_flush_callback,
        backend: *mut *mut doca_log_backend => Out<*mut doca_log_backend>,
    ) {
        backend.put(add(buf(first, capacity, handler)?, false));
        Ok(())
    }

    fn doca_log_backend_create_with_buf_sdk(
        first: *mut c_char,
        capacity: usize,
        handler: log_flush_callback,
        backend: *mut *mut doca_log_backend => Out<*mut doca_log_backend>,
    ) {
        backend.put(add(buf(first, capacity, handler)?, true));
        Ok(())
    }

    fn doca_log_backend_create_with_syslog(
        name: *const c_char => Text,
        backend: *mut *mut doca_log_backend => Out<*mut doca_log_backend>,
    ) {
        backend.put(add(syslog(&name.0)?, false));
        Ok(())
    }

    fn doca_log_backend_create_with_syslog_sdk(
        name: *const c_char => Text,
        backend: *mut *mut doca_log_backend => Out<*mut doca_log_backend>,
    ) {
        backend.put(add(syslog(&name.0)?, true));
        Ok(())
    }

    fn doca_log_backend_set_level_lower_limit(backend: *mut doca_log_backend => Handle<LogBackend>, value: u32) {
        backend.lower.store(level(value)?, Ordering::Relaxed);
        Ok(())
    }

    fn doca_log_backend_set_level_upper_limit(backend: *mut doca_log_backend => Handle<LogBackend>, value: u32) {
        backend.upper.store(level(value)?, Ordering::Relaxed);
        Ok(())
    }

    fn doca_log_backend_set_level_lower_limit_strict(backend: *mut doca_log_backend => Handle<LogBackend>) {
        let _ = backend;
        Ok(())
    }

    fn doca_log_backend_set_level_upper_limit_strict(backend: *mut doca_log_backend => Handle<LogBackend>) {
        let _ = backend;
        Ok(())
    }

    fn doca_log_backend_set_sdk_level(backend: *mut doca_log_backend => Handle<LogBackend>, value: u32) {
        if !backend.is_sdk {
            return Err(Fault::DOCA_ERROR_INVALID_VALUE);
        }
        backend.lower.store(level(value)?, Ordering::Relaxed);
        Ok(())
    }

    fn doca_log_level_set_global_lower_limit(value: u32) {
        set_levels(Some(value), None)
    }

    fn doca_log_level_set_global_upper_limit(value: u32) {
        UPPER.store(level(value)?, Ordering::Relaxed);
        set_all(false, value, |backend| &backend.upper);
        Ok(())
    }

    fn doca_log_level_get_global_lower_limit() -> u32 = (0) {
        LOWER.load(Ordering::Relaxed)
    }

    fn doca_log_level_get_global_upper_limit() -> u32 = (0) {
        UPPER.load(Ordering::Relaxed)
    }

    fn doca_log_level_set_global_sdk_limit(value: u32) {
        set_levels(None, Some(value))
    }

    fn doca_log_level_get_global_sdk_limit() -> u32 = (0) {
        SDK.load(Ordering::Relaxed)
    }

    fn doca_log_register_source(source_name: *const c_char => Text, source: *mut c_int => Out<c_int>) {
        let mut sources = lock(&SOURCES);
        let index = c_int::try_from(sources.len()).map_err(|_| Fault::DOCA_ERROR_NO_MEMORY)?;
        sources.push(Some(source_name.0));
        source.put(index);
        Ok(())
    }

    fn doca_log_unregister_source(source: c_int) {
        let mut sources = lock(&SOURCES);
        let slot = usize::try_from(source).ok().and_then(|index| sources.get_mut(index));
        slot.and_then(Option::take).map(drop).ok_or(Fault::DOCA_ERROR_INVALID_VALUE)
    }
}
