//! Shapes and names of chunks. Names travel as one `bytes` of 32 bytes each, in order: cheap to slice and to pickle.

use block::{ChunkKey, ElementType, KEY_BYTES, Namespace, Planes, Recipe};
use host_ctl::Prefix;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::errors::{input, raise};

/// Planes of a layer by their names here.
const PLANES: [(&str, Planes); 2] = [("kv", Planes::KeysAndValues), ("one", Planes::One)];

/// The shape of one rank's KV cache, or of a section of it, layers of equal shape: `heads` are its KV heads, `element`
/// is `bf16`, `f16`, `f32`, `fp8_e4m3`, `fp8_e5m2`, and `u8`, `u16`, `u32` for what only its owner understands.
/// `planes` of each layer are `kv` (K and V) or `one`. `chunk_tokens` counts the rows of a chunk.
#[pyclass(frozen, eq, hash, skip_from_py_object, module = "kvlane")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Geometry {
    pub(crate) inner: block::Geometry,
}

#[pymethods]
impl Geometry {
    #[new]
    #[pyo3(signature = (layers, heads, head_size, element, chunk_tokens = 256, planes = "kv"))]
    fn new(
        layers: usize,
        heads: usize,
        head_size: usize,
        element: &str,
        chunk_tokens: usize,
        planes: &str,
    ) -> PyResult<Geometry> {
        let element: ElementType = element.parse().map_err(|error| input(format!("element {element:?}: {error}")))?;
        let Some((_, planes)) = PLANES.into_iter().find(|(name, _)| *name == planes) else {
            return Err(input(format!("planes {planes:?} is not kv or one")));
        };
        let inner = block::Geometry::new(layers, heads, head_size, chunk_tokens, element)
            .map_err(|error| input(format!("geometry: {error}")))?;
        Ok(Geometry { inner: inner.with_planes(planes) })
    }

    /// Layers that keep one opaque page of `page_bytes` for each chunk, a state for example, of elements of `width`
    /// bytes. `chunk_tokens` then counts the rows of that page.
    #[staticmethod]
    fn opaque(layers: usize, page_bytes: usize, width: usize) -> PyResult<Geometry> {
        let inner = block::Geometry::opaque(layers, page_bytes, width);
        Ok(Geometry { inner: inner.map_err(|error| input(format!("geometry: {error}")))? })
    }

    #[getter]
    fn chunk_tokens(&self) -> u16 {
        self.inner.chunk_tokens
    }

    /// Bytes of one token (one row) in one plane.
    #[getter]
    fn row_bytes(&self) -> usize {
        self.inner.row_bytes()
    }

    /// Planes of each layer: `kv` or `one`.
    #[getter]
    fn planes(&self) -> &'static str {
        PLANES.into_iter().find(|(_, planes)| *planes == self.inner.planes).expect("both are named").0
    }

    /// Bytes of one chunk in host memory, over all planes.
    #[getter]
    fn chunk_bytes(&self) -> usize {
        self.inner.chunk_bytes()
    }

    fn __repr__(&self) -> String {
        let block::Geometry { layers, heads, head_size, chunk_tokens, element, planes } = self.inner;
        let planes = if planes == Planes::One { ", planes='one'" } else { "" };
        format!("Geometry({layers}, {heads}, {head_size}, '{element}', chunk_tokens={chunk_tokens}{planes})")
    }
}

/// Names of the whole chunks of `tokens`, as one `bytes`. `chunk_tokens`: tokens that a name covers, if they are not
/// the geometry's: a chunk of a window keeps the last of them, one of states rows of bytes. Sections of equal geometry
/// need models of different names. `extras`: what each chunk's tokens leave open, such as the pictures that some of
/// them stand for; empty where they say all.
#[pyfunction]
#[pyo3(signature = (
    tokens, *, model, geometry, recipe, salt = None, rank = 0, ranks = 1, chunk_tokens = None, extras = None
))]
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
    chunk_tokens: Option<usize>,
    extras: Option<Vec<Vec<u8>>>,
) -> PyResult<Bound<'py, PyBytes>> {
    let recipe: Recipe = recipe.parse().map_err(|error| input(format!("recipe {recipe:?}: {error}")))?;
    if rank >= ranks {
        return Err(input(format!("rank {rank} of {ranks} ranks")));
    }
    let salt = salt.unwrap_or_default();
    let namespace = Namespace { model, geometry: geometry.inner, recipe, salt, rank, ranks };
    let chunk_tokens = chunk_tokens.unwrap_or(geometry.inner.chunk_tokens.into());
    let extras = extras.unwrap_or_default();
    let prefix = py.detach(|| Prefix::with_extras(&namespace, &tokens, chunk_tokens, &extras)).map_err(raise)?;
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
