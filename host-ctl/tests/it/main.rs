//! The library and the program, from outside: one binary, so that it links once.

mod client;
mod command;
mod compare;
mod fake;
mod files;
mod kv_files;
mod redis;
mod small_file;
mod transfer;
