//! A KV cache in a process's own memory: regions by address, and where each layer's K and V lie in them.

use std::os::fd::RawFd;
use std::sync::Arc;

use doca::Access;
use host_ctl::RegisteredMapping;
use mailbox::layout::{Base, Form, Order};
use pyo3::prelude::*;

use crate::errors::{input, raise};
use crate::keys::Geometry;
use crate::lent::lend;
use crate::watch::Watch;

/// Address, bytes, owner, what gives address and bytes of now where the owner can change them, and a dma-buf
/// (descriptor and offset) where the memory is a GPU's.
type Lent = (usize, usize, Py<PyAny>, Option<Py<PyAny>>, Option<(RawFd, usize)>);

/// See `kvlane.register`, which makes one.
#[pyclass(frozen, module = "kvlane")]
#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) inner: host_ctl::Memory,
    pub(crate) watches: Arc<[Watch]>,
}

#[pymethods]
impl Memory {
    /// `regions`: see [`Lent`]. `bases`: (region, byte offset) of K, then V, of layer 0, then of layer 1, ...
    #[new]
    #[pyo3(signature = (geometry, regions, bases, *, order, page_tokens, page_count, page_stride, token_stride, head_stride, writable))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        geometry: &Geometry,
        regions: Vec<Lent>,
        bases: Vec<(u16, u64)>,
        order: &str,
        page_tokens: u16,
        page_count: u32,
        page_stride: u64,
        token_stride: u64,
        head_stride: u64,
        writable: bool,
    ) -> PyResult<Memory> {
        let order = match order {
            "token-major" => Order::TokenMajor,
            "head-major" => Order::HeadMajor,
            other => return Err(input(format!("order {other:?} is not token-major or head-major"))),
        };
        let access = if writable { Access::ReadWrite } else { Access::Read };
        let mut watches = Vec::new();
        let mut region = |(region, (address, bytes, owner, watch, dmabuf)): (usize, Lent)| {
            watches.extend(watch.map(|look| Watch { region, address, bytes, look }));
            Ok(RegisteredMapping { mapping: lend(address, bytes, owner, dmabuf)?, access })
        };
        let inner = host_ctl::Memory {
            geometry: geometry.inner,
            form: Form { order, page_tokens, page_count, page_stride, token_stride, head_stride },
            bases: bases.into_iter().map(|(region, offset)| Base { region, offset }).collect(),
            regions: regions.into_iter().enumerate().map(&mut region).collect::<PyResult<Vec<RegisteredMapping>>>()?,
            further: Vec::new(),
        };
        inner.check().map_err(raise)?;
        Ok(Memory { inner, watches: watches.into() })
    }

    /// Page numbers that each chunk of a fetch or store names.
    #[getter]
    fn pages_per_chunk(&self) -> usize {
        self.inner.pages_per_chunk()
    }

    #[getter]
    fn page_count(&self) -> u32 {
        self.inner.form.page_count
    }
}
