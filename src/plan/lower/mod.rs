//! From a module to a plan.
//!
//! [`scan`] reads the graph into macros: which ops one launch takes up. Each program emits them
//! as launches: [`linear`] decides what of a matrix's terms one launch does, [`attend`] lays out the
//! KV cache, [`emit`] holds what grows. Buffers then get places in an arena, by their lifetimes.

mod attend;
mod build;
mod emit;
mod experts;
mod host;
mod linear;
pub(crate) mod macros;
mod program;
mod scan;
pub(crate) mod terms;
mod vectors;

use regex::Regex;

use super::pack::recipe::Recipe;
use super::{Place, Plan, PlanError, Target};
use crate::ir::{Attr, Module};

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum KvFormat {
    /// 2 bytes.
    #[default]
    F16,
    /// 8-bit codes, 32 of a head sharing an f16 scale.
    Q8,
}

/// What a plan is made for.
#[derive(Clone, Debug)]
pub struct Options {
    /// The device.
    pub target: Target,
    /// Sequences that decode together, 1 to 8.
    pub batch: u32,
    /// Positions of a sequence; the model's most, or 8192 if that is less, where absent.
    pub context: Option<u32>,
    /// Tokens of a prompt that go through at once.
    pub chunk: u32,
    /// How keys and values are kept.
    pub kv: KvFormat,
    /// Positions of a page of the cache; contiguous where absent.
    pub page: Option<u32>,
    /// Activations stay f32 (f16 on tensor cores) instead of 8 bits.
    pub exact: bool,
    /// Where weights whose name a pattern finds are kept; the last that fits counts.
    pub placement: Vec<(Regex, Place)>,
}

impl Options {
    /// The usual ones for a target.
    pub fn new(target: Target) -> Self {
        Self {
            target,
            batch: 1,
            context: None,
            chunk: 512,
            kv: KvFormat::F16,
            page: None,
            exact: false,
            placement: Vec::new(),
        }
    }

    /// Where a weight is kept.
    pub(crate) fn place(&self, name: &str) -> Place {
        let found = self.placement.iter().rev().find(|(p, _)| p.is_match(name));
        found.map_or(Place::Device, |(_, place)| *place)
    }
}

/// A plan, and what its weights are packed from.
#[derive(Clone, Debug)]
pub struct Lowered {
    /// The plan, without a blob.
    pub plan: Plan,
    /// Of each weight of the plan.
    pub(crate) recipes: Vec<Recipe>,
}

/// Lowers a causal language model to a plan. Reads shapes alone, no weights.
///
/// # Errors
/// [`PlanError::Unsupported`] names an op or a term that has no kernel; [`PlanError::NotLanguageModel`]
/// says what is missing.
pub fn lower(module: &Module, options: &Options) -> Result<Lowered, PlanError> {
    let scanned = scan::scan(module)?;
    let most = module.meta.get("max_positions").and_then(Attr::as_int);
    let most = most.and_then(|n| u32::try_from(n).ok());
    let context = match (options.context, most) {
        (Some(asked), Some(most)) if asked > most => {
            let problem =
                format!("a context of {asked}: the model is made for {most} tokens at most");
            return Err(PlanError::NotLanguageModel(problem));
        }
        (Some(asked), _) => asked,
        (None, most) => most.unwrap_or(8192).min(8192),
    };
    if !(1..=8).contains(&options.batch) {
        let problem = format!(
            "{} sequences at a time: decode kernels take 1 to 8",
            options.batch
        );
        return Err(PlanError::NotLanguageModel(problem));
    }
    emit::emit(module, scanned, options, context)
}
