//! Safetensors files of a test's own.

use std::fs;
use std::path::{Path, PathBuf};

use block::{ElementType, Geometry, Planes};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

pub(crate) const GEOMETRY: Geometry = Geometry {
    layers: 2,
    heads: 2,
    head_size: 8,
    chunk_tokens: 16,
    element: ElementType::Bf16,
    planes: Planes::KeysAndValues,
};

pub(crate) fn write(path: &Path, tensors: &[(&str, Dtype, &[usize], &[u8])]) {
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, data)| (*name, TensorView::new(*dtype, shape.to_vec(), data).unwrap()));
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// bf16 values that look like a cache: a few large channels, noise elsewhere.
pub(crate) fn values(count: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    (0..count)
        .flat_map(|index| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let noise = (state >> 40) as f32 / (1 << 24) as f32 - 0.5;
            half::bf16::from_f32(if index % 16 == 3 { 20.0 + noise } else { noise }).to_le_bytes()
        })
        .collect()
}

pub(crate) fn kv_file(dir: &Path, name: &str, bytes: &[u8], shape: &[usize]) -> PathBuf {
    let path = dir.join(name);
    write(&path, &[("kv", Dtype::BF16, shape, bytes)]);
    path
}

/// One part of a chunk of a file `[2, 2, tokens, 2, 8]`, and where it lies.
pub(crate) fn rows(part: &block::Part, tokens: usize, chunk: usize) -> Vec<std::ops::Range<usize>> {
    (0..usize::from(part.layers))
        .map(|layer| {
            let plane = (usize::from(part.first_layer) + layer) * 2 + part.kind as usize;
            let start = (plane * tokens + chunk * 16 + usize::from(part.first_token)) * 32;
            start..start + usize::from(part.tokens) * 32
        })
        .collect()
}
