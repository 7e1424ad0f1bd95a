//! Kinds of terms behind the functions that the host calls, and terms of the host.
#![allow(unsafe_code)]

use std::ops::Range;

use hlrc_pass_abi::*;
use serde_json::{Map, Value};

use crate::export::guard;
use crate::host::{self, check, context};
use crate::pass::PassError;
use crate::pass::borrow::{self, lend, slice, spec, text};
use crate::pass::kind::{CustomView, TermKind};
use crate::pass::terms::{TensorData, TermData};

type Result<T, E = PassError> = std::result::Result<T, E>;

/// The definition of a kind. Its name must be the plugin's, a dot, its own.
pub(crate) fn def(plugin: &'static str, kind: &'static &'static dyn TermKind) -> HlrcTermDef {
    let prefix = format!("{}.", plugin.replace('-', "_"));
    // A wrong name is given whole, so that the host refuses it by name.
    let name = kind.name().strip_prefix(&prefix).unwrap_or(kind.name());
    HlrcTermDef {
        size: size_of::<HlrcTermDef>(),
        name: lend(name),
        summary: lend(kind.summary()),
        user: std::ptr::from_ref(kind).cast_mut().cast(),
        check: Some(check_term),
        add_rows: Some(add_rows),
        multiply: Some(multiply),
        onnx: Some(onnx),
        backward: Some(backward),
    }
}

/// Calls `work` with the kind and the term.
///
/// # Safety
/// `def` is one that [`fn@def`] made; what `view` points to lives during the call.
unsafe fn with(
    number: HlrcContext,
    def: *const HlrcTermDef,
    view: *const HlrcTermView,
    work: impl FnOnce(&'static dyn TermKind, &CustomView<'_>) -> Result<HlrcStatus>,
) -> HlrcStatus {
    guard(number, || {
        let least = std::mem::offset_of!(HlrcTermView, tensor_count) + size_of::<usize>();
        // SAFETY: the caller's promise; all fields may be zero.
        let (kind, view) = unsafe {
            let kind: &'static dyn TermKind = *(*def).user.cast::<&'static dyn TermKind>();
            (kind, borrow::sized(view, least)?)
        };
        // SAFETY: the caller's promise.
        let (attributes, tensors) = unsafe {
            (
                text(view.attributes)?,
                slice(view.tensors, view.tensor_count, "tensors")?,
            )
        };
        let attrs: Map<String, Value> = serde_json::from_str(attributes).map_err(PassError::new)?;
        // SAFETY: the caller's promise.
        let tensors = tensors.iter().map(|t| unsafe { host::view(t) });
        let term = CustomView {
            rows: view.rows as usize,
            cols: view.cols as usize,
            attrs: &attrs,
            tensors: tensors.collect::<Result<_>>()?,
        };
        work(kind, &term)
    })
}

unsafe extern "C" fn check_term(
    def: *const HlrcTermDef,
    number: HlrcContext,
    view: *const HlrcTermView,
) -> HlrcStatus {
    let work =
        |kind: &'static dyn TermKind, term: &CustomView<'_>| kind.check(term).map(|()| HLRC_OK);
    // SAFETY: the host calls it so, by the interface; as it does below.
    unsafe { with(number, def, view, work) }
}

fn range(first: u64, rows: u64) -> Range<usize> {
    first as usize..(first as usize).saturating_add(rows as usize)
}

unsafe extern "C" fn add_rows(
    def: *const HlrcTermDef,
    number: HlrcContext,
    view: *const HlrcTermView,
    first_row: u64,
    rows: u64,
    out: *mut f32,
) -> HlrcStatus {
    let work = |kind: &'static dyn TermKind, term: &CustomView<'_>| {
        let range = range(first_row, rows);
        // SAFETY: the host gives room for the rows that it asks for, by the interface.
        let out = unsafe { borrow::room(out, range.len() * term.cols, "rows") }?;
        kind.add_rows(term, range, out).map(|()| HLRC_OK)
    };
    // SAFETY: as in `check_term`.
    unsafe { with(number, def, view, work) }
}

#[allow(clippy::too_many_arguments)] // the interface's own
unsafe extern "C" fn multiply(
    def: *const HlrcTermDef,
    number: HlrcContext,
    view: *const HlrcTermView,
    first_row: u64,
    rows: u64,
    x: *const f32,
    tokens: u64,
    out: *mut f32,
) -> HlrcStatus {
    let work = |kind: &'static dyn TermKind, term: &CustomView<'_>| {
        let (range, tokens) = (range(first_row, rows), tokens as usize);
        // SAFETY: the host gives activations and room for the products, by the interface.
        let (x, out) = unsafe {
            (
                slice(x, tokens * term.cols, "activations")?,
                borrow::room(out, tokens * range.len(), "products")?,
            )
        };
        match kind.multiply(term, range, x, out) {
            None => Ok(HLRC_NONE),
            Some(done) => done.map(|()| HLRC_OK),
        }
    };
    // SAFETY: as in `check_term`.
    unsafe { with(number, def, view, work) }
}

unsafe extern "C" fn backward(
    def: *const HlrcTermDef,
    number: HlrcContext,
    view: *const HlrcTermView,
    dw: *const f32,
    gradients: *const *mut f32,
) -> HlrcStatus {
    let work = |kind: &'static dyn TermKind, term: &CustomView<'_>| {
        // SAFETY: the host gives the matrix's gradient and room for each tensor's, by the interface.
        let (dw, rooms) = unsafe {
            (
                slice(dw, term.rows * term.cols, "gradient")?,
                slice(gradients, term.tensors.len(), "gradients")?,
            )
        };
        let Some(made) = kind.backward(term, dw) else {
            return Ok(HLRC_NONE);
        };
        for ((made, &room), tensor) in made?.iter().zip(rooms).zip(&term.tensors) {
            let count = tensor.shape.iter().product::<u64>() as usize;
            if !made.is_empty() && made.len() != count {
                let (name, have) = (tensor.name, made.len());
                return Err(PassError::new(format!(
                    "gradient of `{name}`: {have} numbers, not {count}"
                )));
            }
            // SAFETY: as above.
            let room = unsafe { borrow::room(room, count, "gradient") }?;
            room.iter_mut()
                .zip(made)
                .for_each(|(slot, value)| *slot = *value);
        }
        Ok(HLRC_OK)
    };
    // SAFETY: as in `check_term`.
    unsafe { with(number, def, view, work) }
}

unsafe extern "C" fn onnx(
    def: *const HlrcTermDef,
    number: HlrcContext,
    view: *const HlrcTermView,
) -> HlrcStatus {
    let work = |kind: &'static dyn TermKind, term: &CustomView<'_>| {
        let Some(form) = kind.onnx(term)? else {
            return Ok(HLRC_NONE);
        };
        let host = host::table()?;
        for tensor in &form.tensors {
            let view = HlrcTensor {
                name: lend(&tensor.name),
                dtype: tensor.dtype.onnx_number() as u32,
                rank: tensor.shape.len() as u32,
                dims: tensor.shape.as_ptr(),
                data: tensor.bytes.as_ptr(),
                len: tensor.bytes.len(),
            };
            // SAFETY: functions of the host, by the interface, here and below; all that is lent lives
            // during the call.
            check(unsafe { (host.onnx_tensor)(context(), &view) })?;
        }
        for node in &form.nodes {
            let inputs: Vec<HlrcStr> = node.inputs.iter().map(|i| lend(i)).collect();
            let attributes = serde_json::to_string(&node.attrs).map_err(PassError::new)?;
            let view = HlrcOnnxNode {
                size: size_of::<HlrcOnnxNode>(),
                op_type: lend(&node.op_type),
                inputs: inputs.as_ptr(),
                input_count: inputs.len(),
                output: lend(&node.output),
                attributes: lend(&attributes),
            };
            // SAFETY: as above.
            check(unsafe { (host.onnx_node)(context(), &view) })?;
        }
        // SAFETY: as above.
        check(unsafe { (host.onnx_output)(context(), lend(&form.output), form.opset) })?;
        Ok(HLRC_OK)
    };
    // SAFETY: as in `check_term`.
    unsafe { with(number, def, view, work) }
}

/// A term of the host, copied.
pub(crate) fn read(term: HlrcTerm) -> Result<TermData> {
    let host = host::table()?;
    let empty = HlrcStr {
        data: std::ptr::null(),
        len: 0,
    };
    let mut view = HlrcTermView {
        size: size_of::<HlrcTermView>(),
        kind: empty,
        rows: 0,
        cols: 0,
        attributes: empty,
        tensors: std::ptr::null(),
        tensor_count: 0,
    };
    // SAFETY: functions of the host, by the interface; what it lends lives until the call ends.
    unsafe {
        check((host.term_view)(context(), term, &mut view))?;
        let tensors = slice(view.tensors, view.tensor_count, "tensors")?;
        let tensors = tensors.iter().map(|t| borrow::tensor(t));
        let tensors = tensors.collect::<Result<Vec<TensorData>>>()?;
        let names: Vec<String> = tensors.iter().map(|t| t.suffix.to_string()).collect();
        let spec = spec(text(view.kind)?, text(view.attributes)?, &names)?;
        TermData::from_parts(spec, tensors, view.rows as usize, view.cols as usize)
    }
}
