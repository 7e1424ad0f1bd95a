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
    /// What it gave on SmolLM2-135M.
    pub measured: Option<Measured>,
}

/// A preset's size and divergence on SmolLM2-135M (134.5 M parameters, tied embeddings), calibrated
/// where the preset uses statistics, judged on the first 20 windows of 512 tokens of WikiText-2's test
/// set; docs/budget.md has the commands.
#[derive(Debug, Clone, Copy)]
pub struct Measured {
    /// Bytes of all weights.
    pub bytes: u64,
    /// Mean KL divergence to the original, nats per token.
    pub divergence: f64,
    /// The same without calibration.
    pub uncalibrated: f64,
}

/// All presets. None refers to another.
pub const PRESETS: [Preset; 10] = [
    Preset {
        name: "q8",
        summary: "8-bit codes, embeddings and head too",
        pipeline: "int8,vocabulary(int8)",
        measured: measured(138_752_640, 0.0022, 0.0022),
    },
    Preset {
        name: "q6",
        summary: "trellis codes of 6 bits, embeddings and head of 7",
        pipeline: "trellis{bits=6},vocabulary(trellis{bits=7})",
        measured: measured(104_504_100, 0.0087, 0.023),
    },
    Preset {
        name: "q5",
        summary: "trellis codes of 5 bits, embeddings and head of 6",
        pipeline: "trellis{bits=5},vocabulary(trellis{bits=6})",
        measured: measured(87_694_116, 0.027, 0.068),
    },
    Preset {
        name: "q4",
        summary: "trellis codes of 4 bits, embeddings and head of 5",
        pipeline: "trellis{bits=4},vocabulary(trellis{bits=5})",
        measured: measured(70_884_132, 0.097, 0.235),
    },
    Preset {
        name: "q3",
        summary: "trellis codes of 3 bits, embeddings and head of 4",
        pipeline: "trellis{bits=3},vocabulary(trellis{bits=4})",
        measured: measured(54_074_148, 0.352, 1.09),
    },
    Preset {
        name: "q2",
        summary: "trellis codes of 2 bits, embeddings and head of 3",
        pipeline: "trellis{bits=2},vocabulary(trellis{bits=3})",
        measured: measured(37_264_164, 1.70, 5.24),
    },
    Preset {
        name: "hl4_s",
        summary: "4-bit codes with outliers kept apart",
        pipeline: "outlier{density=0.5%},int4{group=32}",
        measured: None,
    },
    Preset {
        name: "hl4_m",
        summary: "low rank, outliers and 4-bit codes",
        pipeline: "lowrank{rank=32},outlier{density=0.5%},int4{group=32}",
        measured: None,
    },
    Preset {
        name: "hl3_m",
        summary: "low rank, outliers and 3-bit codes",
        pipeline: "lowrank{rank=64},outlier{density=1%},int3{group=64}",
        measured: None,
    },
    Preset {
        name: "lr",
        summary: "low rank alone, by energy",
        pipeline: "lowrank{energy=0.9}",
        measured: None,
    },
];

const fn measured(bytes: u64, divergence: f64, uncalibrated: f64) -> Option<Measured> {
    Some(Measured {
        bytes,
        divergence,
        uncalibrated,
    })
}

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
