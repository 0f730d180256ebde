//! A KV cache in a process's own memory: regions by address, and where each layer's K and V lie in them.

use std::os::fd::RawFd;
use std::sync::Arc;

use doca::Access;
use host_ctl::{RegisteredMapping, Section};
use mailbox::layout::{Base, Form, Order};
use pyo3::prelude::*;

use crate::errors::{input, raise};
use crate::keys::Geometry;
use crate::lent::lend;
use crate::watch::Watch;

/// Address, bytes, owner, what gives address and bytes of now where the owner can change them, and a dma-buf
/// (descriptor and offset) where the memory is a GPU's.
type Lent = (usize, usize, Py<PyAny>, Option<Py<PyAny>>, Option<(RawFd, usize)>);

/// See `kvlane.Form`.
#[derive(FromPyObject)]
struct PageForm {
    order: String,
    page_tokens: u16,
    page_count: u32,
    page_stride: u64,
    token_stride: u64,
    head_stride: u64,
}

impl PageForm {
    fn parse(self) -> PyResult<Form> {
        let PageForm { page_tokens, page_count, page_stride, token_stride, head_stride, .. } = self;
        let order = match &*self.order {
            "token-major" => Order::TokenMajor,
            "head-major" => Order::HeadMajor,
            other => return Err(input(format!("order {other:?} is not token-major or head-major"))),
        };
        Ok(Form { order, page_tokens, page_count, page_stride, token_stride, head_stride })
    }
}

/// Reads a `kvlane.Section`.
fn section(section: &Bound<'_, PyAny>) -> PyResult<Section> {
    let bases: Vec<(u16, u64)> = section.getattr("bases")?.extract()?;
    Ok(Section {
        geometry: section.getattr("geometry")?.cast::<Geometry>()?.get().inner,
        form: section.getattr("form")?.extract::<PageForm>()?.parse()?,
        bases: bases.into_iter().map(|(region, offset)| Base { region, offset }).collect(),
    })
}

/// See `kvlane.register` and `kvlane.register_sections`, which make one.
#[pyclass(frozen, module = "kvlane")]
#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) inner: host_ctl::Memory,
    pub(crate) watches: Arc<[Watch]>,
}

#[pymethods]
impl Memory {
    /// `sections`: `kvlane.Section`s. `regions`: see [`Lent`].
    #[new]
    #[pyo3(signature = (sections, regions, *, writable))]
    fn new(sections: Vec<Bound<'_, PyAny>>, regions: Vec<Lent>, writable: bool) -> PyResult<Memory> {
        let mut sections = sections.iter().map(section).collect::<PyResult<Vec<Section>>>()?.into_iter();
        let Section { geometry, form, bases } =
            sections.next().ok_or_else(|| input("no sections: a memory has at least one"))?;
        let access = if writable { Access::ReadWrite } else { Access::Read };
        let mut watches = Vec::new();
        let mut region = |(region, (address, bytes, owner, watch, dmabuf)): (usize, Lent)| {
            watches.extend(watch.map(|look| Watch { region, address, bytes, look }));
            Ok(RegisteredMapping { mapping: lend(address, bytes, owner, dmabuf)?, access })
        };
        let regions = regions.into_iter().enumerate().map(&mut region).collect::<PyResult<Vec<RegisteredMapping>>>()?;
        let inner = host_ctl::Memory { geometry, form, bases, regions, further: sections.collect() };
        inner.check().map_err(raise)?;
        Ok(Memory { inner, watches: watches.into() })
    }

    /// Page numbers that each chunk of a fetch or store names, of the first section.
    #[getter]
    fn pages_per_chunk(&self) -> usize {
        self.inner.pages_per_chunk()
    }

    /// Pages of the first section.
    #[getter]
    fn page_count(&self) -> u32 {
        self.inner.form.page_count
    }

    /// Count of the sections.
    #[getter]
    fn sections(&self) -> usize {
        self.inner.sections()
    }
}
