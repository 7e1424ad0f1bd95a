//! Rotary settings: `rope_theta`, `rope_scaling`, and the newer `rope_parameters` that hold both.

use super::config::Fields;
use super::{Stop, unsupported};
use crate::ir::{Native, RopeScaling};

/// How queries and keys are rotated in a kind of layer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rope {
    /// Base of the frequencies.
    pub(super) theta: f64,
    /// Long-context stretching.
    pub(super) scaling: Option<RopeScaling>,
}

impl Rope {
    /// The settings of layers of `kind` (`full_attention`, `sliding_attention`).
    ///
    /// `theta_field` is where older configurations have the base, `default_theta` the class's.
    /// `rope_parameters` may be one object, or one per kind of layer.
    pub(super) fn read(
        fields: &Fields<'_>,
        kind: &str,
        theta_field: &str,
        default_theta: f64,
    ) -> Result<Self, Stop> {
        let theta = fields.positive(theta_field)?.unwrap_or(default_theta);
        // Where both are given, `transformers` takes rope_scaling.
        let parameters = match fields.object("rope_scaling")? {
            Some(scaling) => Some(scaling),
            None => fields.object("rope_parameters")?,
        };
        Self::from_parameters(fields, parameters, kind, theta)
    }

    /// The settings of layers of `kind` that `rope_scaling` does not stretch (Gemma 3's local ones).
    pub(super) fn unscaled(
        fields: &Fields<'_>,
        kind: &str,
        theta_field: &str,
        default_theta: f64,
    ) -> Result<Self, Stop> {
        let theta = fields.positive(theta_field)?.unwrap_or(default_theta);
        let parameters = match fields.object("rope_parameters")? {
            Some(all) => all.object(kind)?,
            None => None,
        };
        Self::from_parameters(fields, parameters, kind, theta)
    }

    fn from_parameters(
        fields: &Fields<'_>,
        parameters: Option<Fields<'_>>,
        kind: &str,
        theta: f64,
    ) -> Result<Self, Stop> {
        let Some(parameters) = parameters else {
            return Ok(Self {
                theta,
                scaling: None,
            });
        };
        let parameters = parameters.object(kind)?.unwrap_or(parameters);
        Ok(Self {
            theta: parameters.positive("rope_theta")?.unwrap_or(theta),
            scaling: scaling(fields, &parameters)?,
        })
    }

    /// How many positions the stretching is made for, where it says.
    ///
    /// Configurations keep the context before stretching in `max_position_embeddings` with `dynamic`,
    /// and often with `yarn`; with `llama3` they have the stretched one there.
    pub(super) fn reach(&self) -> Option<u64> {
        match self.scaling {
            Some(
                RopeScaling::Dynamic {
                    factor,
                    original_context,
                }
                | RopeScaling::Yarn {
                    factor,
                    original_context,
                    ..
                },
            ) => Some((factor * original_context as f64) as u64),
            _ => None,
        }
    }

    /// Rotation of all of each head's dimensions.
    pub(super) fn op(&self, heads: u64, head_dim: u64) -> Native {
        Native::Rope {
            heads,
            head_dim,
            rotary_dim: head_dim,
            theta: self.theta,
            interleaved: false,
            scaling: self.scaling.clone(),
        }
    }
}

fn scaling(fields: &Fields<'_>, rope: &Fields<'_>) -> Result<Option<RopeScaling>, Stop> {
    let partial = match rope.positive("partial_rotary_factor")? {
        Some(factor) => Some(factor),
        None => fields.positive("partial_rotary_factor")?,
    };
    if partial.is_some_and(|factor| factor != 1.0) {
        return unsupported("a partial_rotary_factor");
    }
    let word = match rope.text("rope_type")? {
        Some(word) => Some(word),
        None => rope.text("type")?,
    };
    let missing = |name: &str| Stop::from(rope.fault(name, "is missing"));
    let factor = || rope.positive("factor")?.ok_or_else(|| missing("factor"));
    let context = || -> Result<u64, Stop> {
        // Phi-3 and others keep the original context outside of the object, and that counts first.
        let name = "original_max_position_embeddings";
        match fields.count(name)?.or(rope.count(name)?) {
            Some(count) => Ok(count),
            None => Ok(fields.required("max_position_embeddings")?),
        }
    };
    let number = |name: &str| rope.positive(name)?.ok_or_else(|| missing(name));
    Ok(Some(match word.unwrap_or("default") {
        "default" => return Ok(None),
        "linear" => RopeScaling::Linear { factor: factor()? },
        "dynamic" => RopeScaling::Dynamic {
            factor: factor()?,
            original_context: fields.required("max_position_embeddings")?,
        },
        "llama3" => RopeScaling::Llama3 {
            factor: factor()?,
            low_freq_factor: number("low_freq_factor")?,
            high_freq_factor: number("high_freq_factor")?,
            original_context: context()?,
        },
        "yarn" => yarn(fields, rope, context()?)?,
        other => return unsupported(format!("rope_type `{other}`")),
    }))
}

/// Defaults as in section 3.4 of arXiv 2309.00071 and `transformers`.
fn yarn(
    fields: &Fields<'_>,
    rope: &Fields<'_>,
    original_context: u64,
) -> Result<RopeScaling, Stop> {
    if !rope.flag("truncate", true)? {
        return unsupported("rope_type `yarn` without truncation");
    }
    let factor = match rope.positive("factor")? {
        Some(factor) => factor,
        None => fields.required("max_position_embeddings")? as f64 / original_context as f64,
    };
    let magnitude = |scale: f64| match factor {
        f if f <= 1.0 => 1.0,
        f => 0.1 * scale * f.ln() + 1.0,
    };
    let given = rope.number("attention_factor")?;
    let attention_factor = match (
        given,
        rope.number("mscale")?,
        rope.number("mscale_all_dim")?,
    ) {
        (Some(given), _, _) => given,
        (None, Some(m), Some(all)) if m != 0.0 && all != 0.0 => magnitude(m) / magnitude(all),
        _ => magnitude(1.0),
    };
    if !(attention_factor.is_finite() && factor.is_finite()) {
        return Err(rope
            .fault("mscale", "gives no finite attention_factor")
            .into());
    }
    // `or` of the reference: zero counts as absent.
    let ramp = |name: &str, default: f64| -> Result<f64, Stop> {
        Ok(rope.number(name)?.filter(|x| *x != 0.0).unwrap_or(default))
    };
    Ok(RopeScaling::Yarn {
        factor,
        beta_fast: ramp("beta_fast", 32.0)?,
        beta_slow: ramp("beta_slow", 1.0)?,
        original_context,
        attention_factor,
    })
}
