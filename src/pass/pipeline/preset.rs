//! Named pipelines: `@hl4_m` stands for its text.

use super::error::did_you_mean;
use super::{Item, Override, Pipeline, SyntaxError};

/// A preset: its name, what it is for, and the pipeline it stands for.
#[derive(Debug, Clone, Copy)]
pub struct Preset {
    /// The name, written with `@` in a pipeline.
    pub name: &'static str,
    /// What it is for.
    pub summary: &'static str,
    /// The pipeline.
    pub pipeline: &'static str,
}

/// All presets. None refers to another.
pub const PRESETS: [Preset; 6] = [
    Preset {
        name: "q8",
        summary: "8-bit codes, groups of 64",
        pipeline: "int8{group=64}",
    },
    Preset {
        name: "q4",
        summary: "4-bit codes, groups of 32",
        pipeline: "int4{group=32}",
    },
    Preset {
        name: "hl4_s",
        summary: "4-bit codes with outliers kept apart",
        pipeline: "outlier{density=0.5%},int4{group=32}",
    },
    Preset {
        name: "hl4_m",
        summary: "low rank, outliers and 4-bit codes",
        pipeline: "lowrank{rank=32},outlier{density=0.5%},int4{group=32}",
    },
    Preset {
        name: "hl3_m",
        summary: "low rank, outliers and 3-bit codes",
        pipeline: "lowrank{rank=64},outlier{density=1%},int3{group=64}",
    },
    Preset {
        name: "lr",
        summary: "low rank alone, by energy",
        pipeline: "lowrank{energy=0.9}",
    },
];

/// The pipeline with every preset replaced by what it stands for.
///
/// # Errors
/// A [`SyntaxError`] at a name that is no preset's.
pub fn expand(pipeline: &Pipeline) -> Result<Pipeline, SyntaxError> {
    let mut items = Vec::with_capacity(pipeline.items.len());
    for item in &pipeline.items {
        match item {
            Item::Pass(_) => items.push(item.clone()),
            Item::Scope { scope, body, span } => {
                items.push(Item::Scope {
                    scope: scope.clone(),
                    body: expand(body)?,
                    span: span.clone(),
                });
            }
            Item::Preset { name, span } => {
                let Some(preset) = PRESETS.iter().find(|preset| preset.name == name) else {
                    let known: Vec<&str> = PRESETS.iter().map(|preset| preset.name).collect();
                    return Err(span.error(
                        format!("there is no preset `@{name}`"),
                        did_you_mean(name, "presets", &known),
                    ));
                };
                items.extend(Pipeline::parse(preset.pipeline)?.items);
            }
        }
    }
    Ok(Pipeline { items })
}

/// The override with every preset replaced by what it stands for.
///
/// # Errors
/// As [`expand`].
pub fn expand_override(override_: &Override) -> Result<Override, SyntaxError> {
    Ok(Override {
        body: expand(&override_.body)?,
        ..override_.clone()
    })
}
