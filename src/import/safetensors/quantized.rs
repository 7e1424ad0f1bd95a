//! Checkpoints that are quantized already: refused, since their codes are no weights.

use std::path::Path;

use super::super::{ImportError, Result, shown};
use super::config::Config;
use crate::weights::{Checkpoint, DType};

/// What tensors of quantized layers are called, and by whom.
const MARKS: [(&str, &str); 7] = [
    (".qweight", "GPTQ or AWQ"),
    (".weight_packed", "compressed-tensors"),
    (".weight.absmax", "bitsandbytes"),
    (".SCB", "bitsandbytes"),
    (".weight_scale_inv", "block-scaled f8"),
    (".gate_up_proj_blocks", "MXFP4"),
    (".weight_blocks", "MXFP4"),
];

/// Refuses a checkpoint whose configuration or tensors say that it is quantized.
pub(super) fn refuse(path: &Path, config: Option<&Config>, checkpoint: &Checkpoint) -> Result<()> {
    let quantized = |found: String| {
        Err(ImportError::Quantized {
            path: path.to_path_buf(),
            found,
        })
    };
    if let Some(config) = config {
        for name in ["quantization_config", "compression_config"] {
            if let Some(settings) = config.fields().object(name)? {
                let method = settings.text("quant_method")?.unwrap_or("unnamed method");
                return quantized(format!("`{name}` of config.json: {}", shown(method)));
            }
        }
    }
    for (_, tensor) in checkpoint.tensors() {
        let name = tensor.name.as_str();
        let marked = MARKS.iter().find(|(end, _)| name.ends_with(end));
        let short = || shown(name);
        if let Some((_, method)) = marked {
            return quantized(format!("tensor {}: {method}", short()));
        }
        // Scales beside a weight of narrow elements: f8, int8, or packed words (MLX).
        let scaled = name
            .strip_suffix(".weight_scale")
            .or(name.strip_suffix(".scales"));
        let weight = scaled.and_then(|stem| checkpoint.get(&format!("{stem}.weight")));
        if let Some((_, weight)) = weight
            && !matches!(
                weight.dtype,
                DType::F64 | DType::F32 | DType::F16 | DType::BF16
            )
        {
            return quantized(format!(
                "tensor {} beside a weight of {}",
                short(),
                weight.dtype
            ));
        }
    }
    Ok(())
}
