//! Shapes and names of chunks. Names travel as one `bytes` of 32 bytes each, in order: cheap to slice and to pickle.

use block::{ChunkKey, ElementType, KEY_BYTES, Namespace, Recipe};
use host_ctl::Prefix;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::errors::{input, raise};

/// The shape of one rank's KV cache; `heads` are its KV heads, `dtype` is `bf16`, `f16` or `f32`.
#[pyclass(frozen, eq, hash, skip_from_py_object, module = "kvlane")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Geometry {
    pub(crate) inner: block::Geometry,
}

#[pymethods]
impl Geometry {
    #[new]
    #[pyo3(signature = (layers, heads, head_size, dtype, chunk_tokens = 256))]
    fn new(layers: usize, heads: usize, head_size: usize, dtype: &str, chunk_tokens: usize) -> PyResult<Geometry> {
        let element: ElementType = dtype.parse().map_err(|error| input(format!("dtype {dtype:?}: {error}")))?;
        let inner = block::Geometry::new(layers, heads, head_size, chunk_tokens, element)
            .map_err(|error| input(format!("geometry: {error}")))?;
        Ok(Geometry { inner })
    }

    #[getter]
    fn chunk_tokens(&self) -> u16 {
        self.inner.chunk_tokens
    }

    /// Bytes of one chunk in host memory: K and V of all layers.
    #[getter]
    fn chunk_bytes(&self) -> usize {
        self.inner.chunk_bytes()
    }

    fn __repr__(&self) -> String {
        let block::Geometry { layers, heads, head_size, chunk_tokens, element } = self.inner;
        format!("Geometry({layers}, {heads}, {head_size}, '{element}', chunk_tokens={chunk_tokens})")
    }
}

/// Names of the whole chunks of `tokens`, as one `bytes`.
#[pyfunction]
#[pyo3(signature = (tokens, *, model, geometry, recipe, salt = None, rank = 0, ranks = 1))]
#[allow(clippy::too_many_arguments)]
pub(crate) fn chunk_keys<'py>(
    py: Python<'py>,
    tokens: Vec<u32>,
    model: &str,
    geometry: &Geometry,
    recipe: &str,
    salt: Option<&[u8]>,
    rank: u32,
    ranks: u32,
) -> PyResult<Bound<'py, PyBytes>> {
    let recipe: Recipe = recipe.parse().map_err(|error| input(format!("recipe {recipe:?}: {error}")))?;
    if rank >= ranks {
        return Err(input(format!("rank {rank} of {ranks} ranks")));
    }
    let salt = salt.unwrap_or_default();
    let namespace = Namespace { model, geometry: geometry.inner, recipe, salt, rank, ranks };
    let prefix = py.detach(|| Prefix::new(&namespace, &tokens)).map_err(raise)?;
    let bytes: Vec<u8> = prefix.keys().iter().flat_map(|key| *key.bytes()).collect();
    Ok(PyBytes::new(py, &bytes))
}

/// Names out of the bytes that [`chunk_keys`] made.
pub(crate) fn parse(bytes: &[u8]) -> PyResult<Vec<ChunkKey>> {
    let (keys, rest) = bytes.as_chunks::<KEY_BYTES>();
    if !rest.is_empty() {
        return Err(input(format!("keys: {} bytes are not a multiple of {KEY_BYTES}: use chunk_keys()", bytes.len())));
    }
    Ok(keys.iter().map(|key| ChunkKey::new(*key)).collect())
}
