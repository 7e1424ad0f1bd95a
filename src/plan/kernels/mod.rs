//! The table of kernels: parameters in the order of the ABI, defines, block size.
//!
//! The header of each `kernels/NAME.cu` says the same in lines that a test compares with this table
//! ([`header`] reads them).

pub mod header;
mod launch;
mod sources;
mod table;

pub use launch::{
    FusedLaunch, Launch, PREFILL_TILES, Product, fused_linear, linear_prefill, low_rank_inner,
    prefill_tokens,
};
pub use sources::{flattened, source, sources};
pub use table::KERNELS;

use super::Variant;

/// A kernel.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    /// Its name, and its source's without `.cu`.
    pub name: &'static str,
    /// Version of the parameters.
    pub abi: u32,
    /// Defines with the values that they may have: `BITS=2|3|4|8`, `M=1..8`, `GROUP=0..65536`.
    pub defines: &'static str,
    /// Parameters: `x:const f32*`, `rows:i32`.
    pub args: &'static str,
    /// Threads of a block.
    pub block: u32,
}

/// A parameter of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    /// Its name.
    pub name: String,
    /// Element type, or the number's.
    pub dtype: String,
    /// Whether it is a pointer.
    pub pointer: bool,
    /// Whether what it points to is only read.
    pub read_only: bool,
}

/// A define and its values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Define {
    /// Its name.
    pub name: String,
    /// Ranges of values, both ends included.
    pub values: Vec<(i64, i64)>,
}

/// The kernel called `name`.
pub fn find(name: &str) -> Option<&'static Kernel> {
    KERNELS.iter().find(|k| k.name == name)
}

impl Kernel {
    /// The parameters, in order.
    pub fn params(&self) -> Vec<Param> {
        header::params(self.args)
    }

    /// The defines.
    pub fn define_list(&self) -> Vec<Define> {
        header::defines(self.defines)
    }

    /// What of a variant's defines the kernel does not have, or not with this value.
    pub fn misfits(&self, variant: &Variant) -> Vec<String> {
        let known = self.define_list();
        let mut found = Vec::new();
        for (name, value) in &variant.defines {
            let Some(define) = known.iter().find(|d| d.name == *name) else {
                found.push(format!("{name} is no define of it"));
                continue;
            };
            if !define.values.iter().any(|(a, b)| (a..=b).contains(&value)) {
                found.push(format!("{name}={value} is none of its values"));
            }
        }
        for define in known {
            if !variant.defines.contains_key(&define.name) {
                found.push(format!("{} is not given", define.name));
            }
        }
        found
    }
}
