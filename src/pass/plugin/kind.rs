//! A plugin's kind of term as the tool sees it.
#![allow(unsafe_code)]

use std::mem::offset_of;
use std::ops::Range;

use hlrc_pass_abi::*;

use super::borrow::{self, lend};
use super::context::Context;
use super::scene::Scene;
use crate::ir::is_word;
use crate::pass::PassError;
use crate::pass::kind::{CustomView, OnnxForm, TensorView, TermKind};

/// A kind of term that a plugin defines.
pub(super) struct ForeignKind {
    /// The plugin's name and version.
    plugin: String,
    name: String,
    summary: String,
    raw: HlrcTermDef,
    own: *const HlrcTermDef,
}

// SAFETY: the interface says that definitions never change and may be used from any thread.
unsafe impl Send for ForeignKind {}
// SAFETY: as above.
unsafe impl Sync for ForeignKind {}

impl ForeignKind {
    pub(super) fn new(
        plugin: &str,
        word: &str,
        own: *const HlrcTermDef,
    ) -> Result<Self, PassError> {
        let least = offset_of!(HlrcTermDef, onnx) + size_of::<usize>();
        // SAFETY: definitions live for ever, by the interface; all fields may be zero.
        let raw = unsafe { borrow::sized(own, least) }?;
        // SAFETY: so do their texts.
        let (name, summary) = unsafe { (borrow::text(raw.name)?, borrow::text(raw.summary)?) };
        if !is_word(name) {
            let what = "names are words of letters, digits and `_`";
            return Err(PassError::new(format!(
                "a kind of term is called `{name}`; {what}"
            )));
        }
        if raw.add_rows.is_none() {
            return Err(PassError::new(format!(
                "the kind of term {name} has no `add_rows`"
            )));
        }
        Ok(Self {
            plugin: plugin.to_string(),
            name: format!("{word}.{name}"),
            summary: summary.to_string(),
            raw,
            own,
        })
    }

    fn call(
        &self,
        term: &CustomView<'_>,
        scene: Scene,
        call: impl FnOnce(*const HlrcTermDef, HlrcContext, &HlrcTermView) -> HlrcStatus,
    ) -> Result<(bool, Context), PassError> {
        let attributes = serde_json::to_string(term.attrs).map_err(PassError::new)?;
        let tensors: Vec<HlrcTensor> = term
            .tensors
            .iter()
            .map(|t| HlrcTensor {
                name: lend(t.name),
                dtype: t.dtype.onnx_number() as u32,
                rank: t.shape.len() as u32,
                dims: t.shape.as_ptr(),
                data: t.bytes.as_ptr(),
                len: t.bytes.len(),
            })
            .collect();
        let view = HlrcTermView {
            size: size_of::<HlrcTermView>(),
            kind: lend(&self.name),
            rows: term.rows as u64,
            cols: term.cols as u64,
            attributes: lend(&attributes),
            tensors: tensors.as_ptr(),
            tensor_count: tensors.len(),
        };
        let context = Context::open(&self.name, seed_of(&self.name, &attributes), scene);
        let status = call(self.own, context.number, &view);
        let done = context.close(status).map_err(|e| {
            PassError::new(format!(
                "plugin {}: terms of the kind {}: {e}",
                self.plugin, self.name
            ))
        })?;
        Ok((done, context))
    }

    fn wrong_size(&self, what: &str) -> PassError {
        PassError::new(format!("terms of the kind {}: {what}", self.name))
    }
}

/// Seed of a term's callbacks: its kind and constants (FNV-1a, 64 bits), and nothing of the run's. A term is
/// the same matrix in every run that reads it.
fn seed_of(kind: &str, attributes: &str) -> u64 {
    let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let bytes = kind.bytes().chain([0]).chain(attributes.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, mix)
}

fn in_range(term: &CustomView<'_>, rows: &Range<usize>, out: usize, each: usize) -> bool {
    rows.start <= rows.end && rows.end <= term.rows && Some(out) == rows.len().checked_mul(each)
}

impl TermKind for ForeignKind {
    fn name(&self) -> &str {
        &self.name
    }

    fn summary(&self) -> &str {
        &self.summary
    }

    fn check(&self, term: &CustomView<'_>) -> Result<(), PassError> {
        let Some(check) = self.raw.check else {
            return Ok(());
        };
        // SAFETY: the function is the plugin's, by the interface; all pointers live during the call.
        let call = |own, context, view: &HlrcTermView| unsafe { check(own, context, view) };
        self.call(term, Scene::Plain, call).map(|_| ())
    }

    fn add_rows(
        &self,
        term: &CustomView<'_>,
        rows: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), PassError> {
        let Some(add) = self.raw.add_rows else {
            return Err(self.wrong_size("there is no `add_rows`"));
        };
        if !in_range(term, &rows, out.len(), term.cols) {
            return Err(self.wrong_size("rows that the matrix does not have"));
        }
        let (first, count) = (rows.start as u64, rows.len() as u64);
        let out = out.as_mut_ptr();
        // SAFETY: as in `check`; `out` has the rows that are asked for.
        let call = |own, context, view: &HlrcTermView| unsafe {
            add(own, context, view, first, count, out)
        };
        match self.call(term, Scene::Plain, call)? {
            (true, _) => Ok(()),
            (false, _) => Err(PassError::new(format!(
                "plugin {}: terms of the kind {}: `add_rows` returned HLRC_NONE; every kind decodes",
                self.plugin, self.name
            ))),
        }
    }

    fn multiply(
        &self,
        term: &CustomView<'_>,
        rows: Range<usize>,
        x: &[f32],
        out: &mut [f32],
    ) -> Option<Result<(), PassError>> {
        let multiply = self.raw.multiply?;
        let tokens = x.len().checked_div(term.cols)?;
        if !in_range(term, &rows, out.len(), tokens) {
            return Some(Err(self.wrong_size("rows that the matrix does not have")));
        }
        let (first, count) = (rows.start as u64, rows.len() as u64);
        let (x, out) = (x.as_ptr(), out.as_mut_ptr());
        // SAFETY: as in `check`; `x` has the tokens and `out` the products that are asked for.
        let call = |own, context, view: &HlrcTermView| unsafe {
            multiply(own, context, view, first, count, x, tokens as u64, out)
        };
        match self.call(term, Scene::Plain, call) {
            Ok((true, _)) => Some(Ok(())),
            Ok((false, _)) => None,
            Err(error) => Some(Err(error)),
        }
    }

    fn backward(
        &self,
        term: &CustomView<'_>,
        dw: &[f32],
    ) -> Option<Result<Vec<Vec<f32>>, PassError>> {
        let backward = self.raw.backward?;
        if Some(dw.len()) != term.rows.checked_mul(term.cols) {
            return Some(Err(self.wrong_size("a gradient of another matrix")));
        }
        let count = |t: &TensorView<'_>| t.shape.iter().product::<u64>() as usize;
        let mut gradients: Vec<Vec<f32>> =
            term.tensors.iter().map(|t| vec![0.0; count(t)]).collect();
        let room: Vec<*mut f32> = gradients.iter_mut().map(|g| g.as_mut_ptr()).collect();
        let (dw, room) = (dw.as_ptr(), room.as_ptr());
        // SAFETY: as in `check`; `dw` is of the matrix, and each gradient has its tensor's elements.
        let call =
            |own, context, view: &HlrcTermView| unsafe { backward(own, context, view, dw, room) };
        match self.call(term, Scene::Plain, call) {
            Ok((true, _)) => Some(Ok(gradients)),
            Ok((false, _)) => None,
            Err(error) => Some(Err(error)),
        }
    }

    fn onnx(&self, term: &CustomView<'_>) -> Result<Option<OnnxForm>, PassError> {
        let Some(onnx) = self.raw.onnx else {
            return Ok(None);
        };
        // SAFETY: as in `check`.
        let call = |own, context, view: &HlrcTermView| unsafe { onnx(own, context, view) };
        let (done, context) = self.call(term, Scene::Onnx(OnnxForm::default()), call)?;
        let mut state = context.state();
        match std::mem::replace(&mut state.scene, Scene::Plain) {
            Scene::Onnx(form) if done => Ok(Some(form)),
            _ => Ok(None),
        }
    }
}
