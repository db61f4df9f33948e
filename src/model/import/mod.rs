//! Importers: each turns one kind of model file into a [`Program`](super::program::Program).

pub mod identity;
pub mod pt2;
