//! A file small enough for each test of a program: KV of 64 tokens that can be stored, their ids, and what is no KV.

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::TensorView;

pub(crate) fn kv_file(dir: &Path, name: &str, seed: u8) -> PathBuf {
    let path = dir.join(name);
    let kv: Vec<u8> = (0..2 * 2 * 64 * 2 * 8_usize).flat_map(|index| [index as u8 ^ seed, 0x3f]).collect();
    let tokens: Vec<u8> = (0..64).collect();
    let view = |dtype, shape, data| TensorView::new(dtype, shape, data).unwrap();
    let tensors = [
        ("kv", view(Dtype::BF16, vec![2, 2, 64, 2, 8], &kv)),
        ("tokens", view(Dtype::U8, vec![64], &tokens)),
        ("flat", view(Dtype::U8, vec![64, 1, 1], &tokens)),
    ];
    fs::write(&path, safetensors::serialize(tensors, None).unwrap()).unwrap();
    path
}
