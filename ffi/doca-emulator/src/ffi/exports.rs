//! The definition of exported functions: null pointers, foreign handles and freed handles are answered in one place,
//! with `DOCA_ERROR_INVALID_VALUE`.

/// Defines exported functions. `arg: raw => checked` runs the argument through [`Enter`]; a body without a written
/// return type answers an `Answer`; with one, the value in parentheses is what bad arguments get.
///
/// Each definition is held to the declaration in our headers at compile time: both must coerce to one pointer type.
macro_rules! exports {
    ($(
        $(#[$meta:meta])*
        fn $name:ident($($arg:ident: $raw:ty $(=> $checked:ty)?),* $(,)?) $(-> $ret:ty = ($bad:expr))? $body:block
    )*) => {$(
        $crate::ffi::exports!(@define [$(#[$meta])*] $name ($($arg: $raw, [$($checked)?]),*) [$($ret, $bad)?] $body);
        const _: () = {
            let _same = [$crate::ffi::abi::$name, $name];
        };
    )*};
    (@define [$($meta:tt)*] $name:ident ($($arg:ident: $raw:ty, $checked:tt),*) [] $body:block) => {
        $($meta)*
        #[unsafe(no_mangle)]
        pub(crate) unsafe extern "C" fn $name($($arg: $raw),*) -> $crate::ffi::abi::doca_error {
            fn body($($arg: $crate::ffi::exports!(@type $raw, $checked)),*) -> $crate::ffi::error::Answer $body
            $(
                // SAFETY: the C caller passes what the header asks for; `enter` refuses null and what is not ours.
                let $arg = match unsafe { $crate::ffi::Enter::enter($arg) } {
                    Ok(checked) => checked,
                    Err(fault) => return $crate::ffi::error::said(stringify!($name), fault),
                };
            )*
            $crate::ffi::error::said(stringify!($name), $crate::ffi::error::code(body($($arg),*)))
        }
    };
    (@define [$($meta:tt)*] $name:ident ($($arg:ident: $raw:ty, $checked:tt),*) [$ret:ty, $bad:expr] $body:block) => {
        $($meta)*
        #[unsafe(no_mangle)]
        pub(crate) unsafe extern "C" fn $name($($arg: $raw),*) -> $ret {
            fn body($($arg: $crate::ffi::exports!(@type $raw, $checked)),*) -> $ret $body
            $(
                // SAFETY: the C caller passes what the header asks for; `enter` refuses null and what is not ours.
                let $arg = match unsafe { $crate::ffi::Enter::enter($arg) } {
                    Ok(checked) => checked,
                    Err(_) => return $bad,
                };
            )*
            body($($arg),*)
        }
    };
    (@type $raw:ty, []) => { $raw };
    (@type $raw:ty, [$checked:ty]) => { $checked };
}
pub(crate) use exports;
