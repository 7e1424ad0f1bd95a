//! A plan as text, to be read and compared.

use std::fmt::Write as _;

use super::{Buffer, Plan, Program, Step, Variant};

/// The whole plan; hashes and zero defines are left out.
pub fn print(plan: &Plan) -> String {
    let mut out = String::new();
    let target = &plan.target;
    let _ = writeln!(out, "plan {}", plan.plan_version);
    let _ = writeln!(out, "model \"{}\"", plan.model);
    let _ = writeln!(
        out,
        "target {} ({}): {} SMs, {} bytes of shared memory, {} GB/s",
        target.arch, target.card, target.sms, target.shared_bytes, target.bandwidth_gbps
    );
    let shape = &plan.shape;
    let _ = writeln!(
        out,
        "shape batch={} context={} chunk={} vocabulary={} hidden={}",
        shape.batch, shape.context, shape.chunk, shape.vocabulary, shape.hidden
    );
    let kv = &plan.kv;
    let page = kv
        .page
        .map_or("contiguous".to_string(), |p| format!("pages of {p}"));
    let _ = writeln!(
        out,
        "kv {}, {page}, {} layers, {} bytes per token, {} in all",
        kv.format, kv.layers, kv.bytes_per_token, kv.bytes
    );
    for (index, variant) in plan.kernels.iter().enumerate() {
        let _ = writeln!(out, "kernel {index} {}", variant_text(variant));
    }
    for weight in &plan.weights {
        let _ = write!(
            out,
            "weight @{} [{},{}] {}.v{}",
            weight.name, weight.rows, weight.cols, weight.pack, weight.pack_version
        );
        if weight.place != super::Place::Device {
            out.push_str(" host");
        }
        for section in &weight.sections {
            let _ = write!(
                out,
                " {}:{}@{}+{}",
                section.name, section.dtype, section.offset, section.bytes
            );
        }
        let own = [weight.name.clone()];
        if !weight.parts.is_empty() && weight.parts != own {
            let shown: Vec<&str> = weight.parts.iter().take(4).map(String::as_str).collect();
            let more = weight.parts.len().saturating_sub(shown.len());
            let more = if more > 0 {
                format!(" and {more} more")
            } else {
                String::new()
            };
            let _ = write!(out, " of {}{more}", shown.join(", "));
        }
        out.push('\n');
    }
    for buffer in &plan.persistent {
        buffer_text(&mut out, "persistent", buffer);
    }
    for program in &plan.programs {
        program_text(&mut out, plan, program);
    }
    for note in &plan.notes {
        let _ = writeln!(out, "note {}: {}", note.at, note.text);
    }
    out
}

/// `fused_linear<BITS=4, GROUP=32, M=1>`; defines that are 0 are left out.
pub fn variant_text(variant: &Variant) -> String {
    let each = variant.defines.iter().filter(|(_, v)| **v != 0);
    let each: Vec<String> = each
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    format!("{}.v{}<{}>", variant.kernel, variant.abi, each.join(" "))
}

fn buffer_text(out: &mut String, what: &str, buffer: &Buffer) {
    let dims: Vec<String> = buffer.dims.iter().map(u64::to_string).collect();
    let _ = write!(
        out,
        "{what} {} {}[{}] @{}",
        buffer.name,
        buffer.dtype,
        dims.join(","),
        buffer.offset
    );
    if let Some([first, last]) = buffer.live {
        let _ = write!(out, " live {first}..{last}");
    }
    if let Some(filled) = &buffer.filled {
        let _ = write!(
            out,
            " filled by {}",
            if filled == "zero" {
                "zeros, once"
            } else {
                filled
            }
        );
    }
    if buffer.place != super::Place::Device {
        out.push_str(" host");
    }
    out.push('\n');
}

fn program_text(out: &mut String, plan: &Plan, program: &Program) {
    let _ = writeln!(
        out,
        "program {} of {} tokens, arena {} bytes",
        program.name, program.tokens, program.arena_bytes
    );
    for buffer in &program.buffers {
        buffer_text(out, "  buffer", buffer);
    }
    for (index, step) in program.steps.iter().enumerate() {
        step_text(out, plan, index, step);
    }
    for capture in &program.captures {
        let [first, last] = capture.steps;
        let _ = writeln!(
            out,
            "  graph steps {first}..{last} scalars {}",
            capture.scalars.join(" ")
        );
    }
}

fn step_text(out: &mut String, plan: &Plan, index: usize, step: &Step) {
    let kernel = plan.kernels.get(step.kernel as usize);
    let kernel = kernel.map_or("?", |k| k.kernel.as_str());
    let [x, y, z] = step.grid;
    let after: Vec<String> = step.after.iter().map(u32::to_string).collect();
    let place = if step.place == super::Place::Host {
        " host"
    } else {
        ""
    };
    let _ = writeln!(
        out,
        "  step {index} {}: {kernel}#{} grid {x}x{y}x{z} block {} shared {}{place} after [{}] ~{} bytes ~{} us",
        step.name,
        step.kernel,
        step.block,
        step.shared_bytes,
        after.join(" "),
        step.estimate.bytes,
        step.estimate.us
    );
    let zero = |value: &super::Value| {
        matches!(value, super::Value::Null | super::Value::Int(0))
            || *value == super::Value::Float(0.0)
    };
    let given = step.args.iter().filter(|(_, value)| !zero(value));
    let given: Vec<String> = given
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let _ = writeln!(out, "    {}", given.join(" "));
}
