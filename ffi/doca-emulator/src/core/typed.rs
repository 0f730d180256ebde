//! The typed faces of a task: one pointer type per task type in the headers, one [`Task`] behind them all.

use std::marker::PhantomData;
use std::ops::Deref;

use crate::config::TaskKind;
use crate::core::task::Task;
use crate::ffi::{Enter, Fault, Handle};

/// A typed task pointer of one of the contexts, checked to be of its kind.
pub(crate) struct Of<O>(pub(crate) Handle<Task>, PhantomData<O>);

/// Says which kind a typed task of the headers is.
pub(crate) trait Typed {
    const KIND: TaskKind;
}

impl<O: Typed> Enter<*const O> for Of<O> {
    unsafe fn enter(raw: *const O) -> Result<Self, Fault> {
        // SAFETY: our contract is the callee's; typed tasks are the same pointers as plain ones.
        let task = unsafe { Handle::<Task>::from_c(raw.cast()) }?;
        if task.kind == O::KIND { Ok(Of(task, PhantomData)) } else { Err(Fault::DOCA_ERROR_INVALID_VALUE) }
    }
}

impl<O: Typed> Enter<*mut O> for Of<O> {
    unsafe fn enter(raw: *mut O) -> Result<Self, Fault> {
        // SAFETY: our contract is the callee's.
        unsafe { Enter::enter(raw.cast_const()) }
    }
}

impl<O> Deref for Of<O> {
    type Target = Task;

    fn deref(&self) -> &Task {
        &self.0
    }
}

/// The functions that every task type has, from one list of their names.
macro_rules! task_functions {
    (
        $(#[$meta:meta])*
        $kind:ident: $task:ident of $ctx:ident as $checked:ident, callback $callback:ident;
        fn $is_supported:ident; fn $max_buf_size:ident; fn $max_list_len:ident; fn $set_conf:ident;
        fn $alloc_init:ident $(($($option:ident => $setter:ident),*))?;
        fn $as_task:ident; fn $set_src:ident; fn $get_src:ident; fn $set_dst:ident; fn $get_dst:ident;
    ) => {
        impl $crate::core::typed::Typed for $crate::ffi::abi::$task {
            const KIND: $crate::config::TaskKind = $crate::config::TaskKind::$kind;
        }

        impl $crate::ffi::Enter<$crate::ffi::abi::$callback> for $crate::ffi::abi::$callback {
            unsafe fn enter(raw: Self) -> Result<Self, $crate::ffi::error::Fault> {
                Ok(raw)
            }
        }

        $crate::ffi::exports! {
            fn $is_supported(devinfo: *const $crate::ffi::abi::doca_devinfo => Handle<$crate::core::dev::DevInfo>) {
                devinfo.buf_bytes_max($crate::config::TaskKind::$kind).map(drop)
            }

            fn $max_buf_size(
                devinfo: *const $crate::ffi::abi::doca_devinfo => Handle<$crate::core::dev::DevInfo>,
                bytes: *mut u64 => $crate::ffi::Out<u64>,
            ) {
                bytes.put(devinfo.buf_bytes_max($crate::config::TaskKind::$kind)?);
                Ok(())
            }

            fn $max_list_len(
                devinfo: *const $crate::ffi::abi::doca_devinfo => Handle<$crate::core::dev::DevInfo>,
                elements: *mut u32 => $crate::ffi::Out<u32>,
            ) {
                devinfo.buf_bytes_max($crate::config::TaskKind::$kind)?;
                elements.put(devinfo.config.list_max);
                Ok(())
            }

            fn $set_conf(
                context: *mut $crate::ffi::abi::$ctx => $checked,
                done: $crate::ffi::abi::$callback,
                failed: $crate::ffi::abi::$callback,
                count: u32,
            ) {
                type Typed = $crate::ffi::abi::$callback;
                // SAFETY: both are optional C functions of three arguments that differ in what the first points to,
                // which the calling convention does not see; the pointer passed will be of the typed kind.
                let (done, failed) = unsafe {
                    (
                        std::mem::transmute::<Typed, Option<$crate::core::ctx::Callback>>(done),
                        std::mem::transmute::<Typed, Option<$crate::core::ctx::Callback>>(failed),
                    )
                };
                context.0.configure($crate::config::TaskKind::$kind, done, failed, count)
            }

            fn $alloc_init(
                context: *mut $crate::ffi::abi::$ctx => $checked,
                $($($option: u8,)*)?
                src: *const $crate::ffi::abi::doca_buf,
                dst: *mut $crate::ffi::abi::doca_buf,
                user_data: $crate::ffi::abi::doca_data,
                task: *mut *mut $crate::ffi::abi::$task => $crate::ffi::Out<*mut $crate::ffi::abi::$task>,
            ) {
                let allocated = context.0.allocate($crate::config::TaskKind::$kind)?;
                allocated.init(src, dst, user_data);
                $($(allocated.$setter($option);)*)?
                task.put(allocated.to_c().cast());
                Ok(())
            }

            fn $as_task(task: *mut $crate::ffi::abi::$task => $crate::core::typed::Of<$crate::ffi::abi::$task>)
                -> *mut $crate::ffi::abi::doca_task = (std::ptr::null_mut())
            {
                task.0.to_c()
            }

            fn $set_src(
                task: *mut $crate::ffi::abi::$task => $crate::core::typed::Of<$crate::ffi::abi::$task>,
                src: *const $crate::ffi::abi::doca_buf,
            ) -> () = ($crate::ffi::error::complain(concat!(stringify!($set_src), ": not such a task"))) {
                task.set_src(src)
            }

            fn $get_src(task: *const $crate::ffi::abi::$task => $crate::core::typed::Of<$crate::ffi::abi::$task>)
                -> *const $crate::ffi::abi::doca_buf = (std::ptr::null())
            {
                task.src()
            }

            fn $set_dst(
                task: *mut $crate::ffi::abi::$task => $crate::core::typed::Of<$crate::ffi::abi::$task>,
                dst: *mut $crate::ffi::abi::doca_buf,
            ) -> () = ($crate::ffi::error::complain(concat!(stringify!($set_dst), ": not such a task"))) {
                task.set_dst(dst)
            }

            fn $get_dst(task: *const $crate::ffi::abi::$task => $crate::core::typed::Of<$crate::ffi::abi::$task>)
                -> *mut $crate::ffi::abi::doca_buf = (std::ptr::null_mut())
            {
                task.dst()
            }
        }
    };
}
pub(crate) use task_functions;
