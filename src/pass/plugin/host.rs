//! The host's table of functions: what every context has, terms, peels, ONNX forms.
//!
//! Each takes pointers of a plugin, checks what can be checked, and does its work under the context's lock.
#![allow(unsafe_code)]

use hlrc_pass_abi::*;

use super::borrow::{self, spec, traits_out};
use super::context::{State, with};
use super::scene::Scene;
use super::{edit, walk};
use crate::pass::kind::{OnnxForm, OnnxNode, OnnxTensor};
use crate::pass::terms::TermData;
use crate::pass::{PassError, Remark, RemarkKind};

type Result<T, E = PassError> = std::result::Result<T, E>;

/// The table, for ever.
pub(super) fn table() -> *const HlrcHost {
    &raw const TABLE.0
}

struct Table(HlrcHost);

// SAFETY: the table is never written; its text is static.
unsafe impl Sync for Table {}

static TABLE: Table = Table(HlrcHost {
    size: size_of::<HlrcHost>(),
    abi_major: HLRC_ABI_MAJOR,
    abi_minor: HLRC_ABI_MINOR,
    version: HlrcStr {
        data: env!("CARGO_PKG_VERSION").as_ptr(),
        len: env!("CARGO_PKG_VERSION").len(),
    },
    fail,
    last_error,
    remark,
    progress,
    cancelled,
    random,
    term_new,
    term_view,
    term_add_rows,
    note,
    earlier,
    earlier_set,
    module_text: walk::module_text,
    module_set_text: edit::module_set_text,
    graph_count: walk::graph_count,
    graph_info: walk::graph_info,
    op_info: walk::op_info,
    op_term: walk::op_term,
    op_rows: walk::op_rows,
    value_info: walk::value_info,
    weight_count: walk::weight_count,
    weight_info: walk::weight_info,
    weight_data: walk::weight_data,
    weight_new: edit::weight_new,
    weight_drop: edit::weight_drop,
    value_new: edit::value_new,
    op_new: edit::op_new,
    op_copy: edit::op_copy,
    op_set_name: edit::op_set_name,
    op_set_inputs: edit::op_set_inputs,
    op_set_results: edit::op_set_results,
    op_clear_terms: edit::op_clear_terms,
    op_add_term: edit::op_add_term,
    op_replace: edit::op_replace,
    graph_set_ports: edit::graph_set_ports,
    onnx_tensor,
    onnx_node,
    onnx_output,
    term_drop: Some(term_drop),
    seed: Some(seed),
    op_site: Some(walk::op_site),
    moments: Some(walk::moments),
});

unsafe extern "C" fn fail(context: HlrcContext, message: HlrcStr) -> HlrcStatus {
    with(context, |state| {
        // SAFETY: a text of the plugin, by the interface; so are those below.
        let text = unsafe { borrow::text(message) }?;
        state.failure = Some(text.to_string());
        Ok(())
    })
}

unsafe extern "C" fn last_error(context: HlrcContext, message: *mut HlrcStr) -> HlrcStatus {
    with(context, |state| {
        let text = state.refused.clone();
        let text = state.lend(text);
        // SAFETY: room of the plugin, by the interface; so is all room below.
        unsafe { borrow::put(message, text) }
    })
}

unsafe extern "C" fn remark(
    context: HlrcContext,
    kind: u32,
    site: HlrcStr,
    message: HlrcStr,
) -> HlrcStatus {
    with(context, |state| {
        // SAFETY: as in `fail`.
        let (site, message) = unsafe { (borrow::text(site)?, borrow::text(message)?) };
        let kind = match kind {
            HLRC_REMARK_PASSED => RemarkKind::Passed,
            HLRC_REMARK_MISSED => RemarkKind::Missed,
            HLRC_REMARK_ANALYSIS => RemarkKind::Analysis,
            other => return Err(PassError::new(format!("a remark of kind {other}"))),
        };
        let site = if site.is_empty() { &state.site } else { site };
        let remark = Remark::new(kind, site, message);
        state.remarks.push(remark);
        Ok(())
    })
}

unsafe extern "C" fn progress(context: HlrcContext, done: u64, total: u64) -> HlrcStatus {
    with(context, |state| {
        if let Some(hear) = super::ON_PROGRESS.get() {
            hear(&format!("{}: {done} of {total}", state.site));
        }
        Ok(())
    })
}

unsafe extern "C" fn cancelled(context: HlrcContext) -> HlrcStatus {
    match with(context, |_| Ok(())) {
        HLRC_OK if super::cancelled() => HLRC_CANCELLED,
        status => status,
    }
}

unsafe extern "C" fn random(context: HlrcContext, out: *mut u64, count: usize) -> HlrcStatus {
    with(context, |state| {
        // SAFETY: as in `last_error`.
        let out = unsafe { borrow::room(out, count, "random numbers") }?;
        out.fill_with(|| split_mix(&mut state.random));
        Ok(())
    })
}

unsafe extern "C" fn seed(context: HlrcContext, seed: *mut u64) -> HlrcStatus {
    with(context, |state| {
        // SAFETY: as in `last_error`.
        unsafe { borrow::put(seed, state.seed) }
    })
}

/// SplitMix64 (G. Steele et al., OOPSLA 2014).
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[allow(clippy::too_many_arguments)] // the interface's own
unsafe extern "C" fn term_new(
    context: HlrcContext,
    kind: HlrcStr,
    attributes: HlrcStr,
    rows: u64,
    cols: u64,
    tensors: *const HlrcTensor,
    tensor_count: usize,
    term: *mut HlrcTerm,
) -> HlrcStatus {
    with(context, |state| {
        // SAFETY: as in `fail`.
        let made = unsafe { term_of(kind, attributes, rows, cols, tensors, tensor_count) }?;
        let handle = state.add_term(made);
        // SAFETY: as in `last_error`.
        unsafe { borrow::put(term, handle) }
    })
}

/// # Safety
/// Texts and tensors live and may be read.
unsafe fn term_of(
    kind: HlrcStr,
    attributes: HlrcStr,
    rows: u64,
    cols: u64,
    tensors: *const HlrcTensor,
    tensor_count: usize,
) -> Result<TermData> {
    // SAFETY: the caller's promise.
    let (kind, attributes, tensors) = unsafe {
        (
            borrow::text(kind)?,
            borrow::text(attributes)?,
            borrow::slice(tensors, tensor_count, "tensors")?,
        )
    };
    // SAFETY: the caller's promise.
    let tensors = tensors.iter().map(|t| unsafe { borrow::tensor(t) });
    let tensors = tensors.collect::<Result<Vec<_>>>()?;
    let names: Vec<String> = tensors.iter().map(|t| t.suffix.to_string()).collect();
    let bad = |e: PassError| PassError::new(format!("a term of the kind `{kind}`: {e}"));
    let spec = spec(kind, attributes, &names)?;
    let (rows, cols) = (size(rows)?, size(cols)?);
    let made = TermData::from_parts(spec, tensors, rows, cols).map_err(bad)?;
    if let TermData::Custom(custom) = &made {
        let known = crate::pass::kind::needed(&custom.kind)?;
        known.check(&custom.view()).map_err(bad)?;
    }
    Ok(made)
}

pub(super) fn size(n: u64) -> Result<usize> {
    usize::try_from(n).map_err(|_| PassError::new(format!("{n} is more than memory has")))
}

unsafe extern "C" fn term_drop(context: HlrcContext, term: HlrcTerm) -> HlrcStatus {
    with(context, |state| state.drop_term(term))
}

unsafe extern "C" fn term_view(
    context: HlrcContext,
    term: HlrcTerm,
    view: *mut HlrcTermView,
) -> HlrcStatus {
    with(context, |state| {
        let made = state.view(term)?;
        // SAFETY: as in `last_error`.
        unsafe { borrow::fill(view, &made) }
    })
}

unsafe extern "C" fn term_add_rows(
    context: HlrcContext,
    term: HlrcTerm,
    first_row: u64,
    rows: u64,
    out: *mut f32,
) -> HlrcStatus {
    with(context, |state| {
        let term = state.term(term)?;
        let (all, cols) = term.shape();
        let range = rows_of(first_row, rows, all)?;
        // SAFETY: as in `last_error`.
        let out = unsafe { borrow::room(out, range.len() * cols, "rows") }?;
        term.add_rows(range, out)
    })
}

/// A range of rows that a matrix has.
pub(super) fn rows_of(first: u64, count: u64, all: usize) -> Result<std::ops::Range<usize>> {
    let end = first.checked_add(count).filter(|&end| end <= all as u64);
    let outside = || PassError::new(format!("rows {first} to {first}+{count} of {all}"));
    let end = end.ok_or_else(outside)?;
    Ok(first as usize..end as usize)
}

unsafe extern "C" fn note(context: HlrcContext, note: HlrcStr) -> HlrcStatus {
    with(context, |state| {
        // SAFETY: as in `fail`.
        state.note = unsafe { borrow::text(note) }?.to_string();
        Ok(())
    })
}

unsafe extern "C" fn earlier(
    context: HlrcContext,
    index: usize,
    earlier: *mut HlrcEarlier,
) -> HlrcStatus {
    with(context, |state| {
        let found = earlier_terms(state)?.get(index)?;
        let (traits, term) = (traits_out(found.pass), found.term.clone());
        let made = HlrcEarlier {
            size: size_of::<HlrcEarlier>(),
            term: state.add_term(term),
            traits,
        };
        // SAFETY: as in `last_error`.
        unsafe { borrow::fill(earlier, &made) }
    })
}

unsafe extern "C" fn earlier_set(context: HlrcContext, index: usize, term: HlrcTerm) -> HlrcStatus {
    with(context, |state| {
        let term = state.term(term)?.clone();
        earlier_terms(state)?.set(index, term)
    })
}

fn earlier_terms(state: &mut State) -> Result<&mut super::scene::EarlierTerms> {
    match &mut state.scene {
        Scene::Peel(earlier) => Ok(earlier),
        _ => Err(PassError::new("only a peel has earlier terms")),
    }
}

fn onnx_form(state: &mut State) -> Result<&mut OnnxForm> {
    match &mut state.scene {
        Scene::Onnx(form) => Ok(form),
        _ => Err(PassError::new(
            "only `onnx` of a kind of term gives an ONNX form",
        )),
    }
}

unsafe extern "C" fn onnx_tensor(context: HlrcContext, tensor: *const HlrcTensor) -> HlrcStatus {
    with(context, |state| {
        // SAFETY: as in `fail`.
        let given = unsafe { borrow::slice(tensor, 1, "tensor") }?;
        let form = onnx_form(state)?;
        for tensor in given {
            // SAFETY: as in `fail`.
            let tensor = unsafe { borrow::tensor(tensor) }?;
            form.tensors.push(OnnxTensor {
                name: tensor.suffix.into_owned(),
                dtype: tensor.dtype,
                shape: tensor.shape,
                bytes: tensor.pieces.concat(),
            });
        }
        Ok(())
    })
}

unsafe extern "C" fn onnx_node(context: HlrcContext, node: *const HlrcOnnxNode) -> HlrcStatus {
    with(context, |state| {
        let least = std::mem::offset_of!(HlrcOnnxNode, attributes) + size_of::<HlrcStr>();
        // SAFETY: as in `fail`; all fields may be zero.
        let node = unsafe { borrow::sized(node, least) }?;
        // SAFETY: as in `fail`.
        let (op_type, output, attributes, inputs) = unsafe {
            (
                borrow::text(node.op_type)?,
                borrow::text(node.output)?,
                borrow::text(node.attributes)?,
                borrow::slice(node.inputs, node.input_count, "inputs")?,
            )
        };
        // SAFETY: as in `fail`.
        let inputs = inputs
            .iter()
            .map(|&i| unsafe { borrow::text(i) }.map(str::to_string));
        let attributes = if attributes.is_empty() {
            "{}"
        } else {
            attributes
        };
        let made = OnnxNode {
            op_type: op_type.to_string(),
            inputs: inputs.collect::<Result<_>>()?,
            output: output.to_string(),
            attrs: serde_json::from_str(attributes)
                .map_err(|e| PassError::new(format!("attributes of {op_type}: {e}")))?,
        };
        onnx_form(state)?.nodes.push(made);
        Ok(())
    })
}

unsafe extern "C" fn onnx_output(context: HlrcContext, name: HlrcStr, opset: u64) -> HlrcStatus {
    with(context, |state| {
        let form = onnx_form(state)?;
        // SAFETY: as in `fail`.
        form.output = unsafe { borrow::text(name) }?.to_string();
        form.opset = opset;
        Ok(())
    })
}
