//! What stands here for passes and kinds of terms of a plugin in another process.

use std::ops::Range;

use serde_json::{Map, Value};

use super::super::borrow::{Traits, quantizer_out};
use super::super::seed;
use super::super::stated::{self, Stated};
use super::wire::{self, Answer, Ask, Call, Parts, Tensor, Work};
use super::{PassError, Remote};
use crate::ir::Rotation;
use crate::ir::patch::Patch;
use crate::ir::text::{parse, print};
use crate::pass::interface::{
    self, Calibration, Cost, MatrixPass, ModulePass, Pass, Peel, Peeled, PeeledStored, Place,
    Quantizer, Rewrite,
};
use crate::pass::kind::{CustomView, OnnxForm, OnnxNode, OnnxTensor, TermKind};
use crate::pass::plugin::borrow;
use crate::weights::DType;

type Result<T, E = PassError> = std::result::Result<T, E>;

/// Builds a pass there; what is returned asks for it again and again.
pub(super) fn build(
    remote: &'static Remote,
    name: &'static str,
    options: Map<String, Value>,
) -> Result<Pass> {
    let call = Call {
        pass: name.to_string(),
        options,
        seed: seed(),
    };
    let what = format!("pass {name}");
    let answer = remote.ask(&Ask::Build(call.clone()), &[], None);
    match answer.map_err(|e| remote.error(&what, &e))? {
        Answer::Module { calibration } => Ok(Pass::Module(Box::new(RemoteModule {
            remote,
            call,
            what,
            calibration: borrow::calibration_in(calibration)?,
        }))),
        Answer::Matrix(traits) => {
            let traits = traits.read()?;
            let work = RemoteMatrix { remote, call, what };
            Ok(Pass::Matrix(Box::new(Stated { traits, work })))
        }
        _ => Err(strange(&what)),
    }
}

fn strange(what: &str) -> PassError {
    PassError::new(format!(
        "{what}: its process gave an answer to another question"
    ))
}

struct RemoteMatrix {
    remote: &'static Remote,
    call: Call,
    what: String,
}

impl stated::Work for RemoteMatrix {
    fn cost(&self, rows: u64, cols: u64) -> Result<Cost> {
        let call = self.call.clone();
        let answer = self.remote.ask(&Ask::Cost { call, rows, cols }, &[], None);
        let Answer::Cost {
            workspace_bytes,
            term_bytes,
            nanos,
        } = answer.map_err(|e| self.remote.error(&self.what, &e))?
        else {
            return Err(strange(&self.what));
        };
        // The shared file holds the residual once more, and the child works on a copy.
        let shared = rows.saturating_mul(cols).saturating_mul(8);
        Ok(Cost {
            workspace_bytes: workspace_bytes.saturating_add(shared),
            term_bytes,
            nanos,
        })
    }

    fn peel(&self, peel: &mut Peel<'_>) -> Result<Peeled> {
        let refused = |e: PassError| self.remote.error(&self.what, &e);
        let mut bytes: Vec<Vec<u8>> = Vec::new();
        if let Some(moments) = peel.moments {
            bytes.push(floats(&moments.diagonal));
            bytes.extend(moments.hessian.as_deref().map(floats));
        }
        let mut earlier = Vec::new();
        for one in &peel.earlier {
            let (parts, more) = Parts::of(one.term.clone());
            earlier.push((wire::Traits::of(one.pass), parts));
            bytes.extend(more);
        }
        let about = wire::Peel {
            site: peel.site.to_string(),
            rows: peel.rows,
            cols: peel.cols,
            seed: peel.seed,
            rotation_seed: peel.rotation_seed,
            next: peel.next.as_ref().map(wire::Quantizer::of),
            quantized_later: peel.quantized_later,
            rotation: peel.rotation.map(|r| [r.out_block, r.in_block, r.seed]),
            moments: peel.moments.map(|m| (m.tokens, m.hessian.is_some())),
            earlier,
        };
        let ask = Ask::Peel(self.call.clone(), Box::new(about));
        let blobs: Vec<&[u8]> = bytes.iter().map(Vec::as_slice).collect();
        let answer = self.remote.ask(&ask, &blobs, Some(peel.residual));
        let Answer::Peeled {
            term,
            note,
            rotation,
            remarks,
            earlier,
            bytes,
        } = answer.map_err(refused)?
        else {
            return Err(strange(&self.what));
        };
        let mut bytes = bytes.into_iter();
        let wrong = |e: String| refused(PassError::new(e));
        let term = term
            .map(|parts| parts.term(&mut bytes))
            .transpose()
            .map_err(wrong)?;
        for (index, parts) in earlier {
            let changed = parts.term(&mut bytes).map_err(wrong)?;
            if let Some(slot) = peel.earlier.get_mut(index) {
                *slot.term = changed;
            }
        }
        *peel.rotation = rotation.map(|[out_block, in_block, seed]| Rotation {
            out_block,
            in_block,
            seed,
        });
        peel.remarks.extend(remarks);
        Ok(Peeled { term, note })
    }

    fn peel_stored(
        &self,
        stored: interface::Stored<'_>,
        place: Place<'_>,
    ) -> Option<Result<PeeledStored>> {
        use interface::Stored;
        let (dtype, bytes, rows, cols) = match stored {
            Stored::F32 { bytes, rows, cols } => (DType::F32, bytes, rows, cols),
            Stored::F16 { bytes, rows, cols } => (DType::F16, bytes, rows, cols),
            Stored::Bf16 { bytes, rows, cols } => (DType::BF16, bytes, rows, cols),
        };
        let ask = Ask::PeelStored {
            call: self.call.clone(),
            stored: wire::Stored { dtype, rows, cols },
            site: place.site.to_string(),
            seed: place.seed,
        };
        let answer = self.remote.ask(&ask, &[bytes], None);
        match answer {
            Ok(Answer::Nothing) => None,
            Ok(Answer::PeeledStored {
                term,
                weight_squares,
                residual_squares,
                bytes,
            }) => {
                let term = term.term(&mut bytes.into_iter());
                let wrong = |e: String| self.remote.error(&self.what, &PassError::new(e));
                Some(term.map_err(wrong).map(|term| PeeledStored {
                    term,
                    weight_squares,
                    residual_squares,
                }))
            }
            Ok(_) => Some(Err(strange(&self.what))),
            Err(error) => Some(Err(self.remote.error(&self.what, &error))),
        }
    }
}

struct RemoteModule {
    remote: &'static Remote,
    call: Call,
    what: String,
    calibration: Calibration,
}

impl ModulePass for RemoteModule {
    fn calibration(&self) -> Calibration {
        self.calibration
    }

    fn run(&self, rewrite: &mut Rewrite<'_>) -> Result<Patch> {
        let (module, remarks) = (rewrite.module, &mut *rewrite.remarks);
        let title = self.remote.title.get().map_or("", String::as_str);
        let rule = format!("{} (plugin {title})", self.call.pass);
        // Relative paths of weights mean the same there.
        let base_dir = match module.base_dir.as_os_str().is_empty() {
            true => std::path::PathBuf::new(),
            false => std::path::absolute(&module.base_dir).unwrap_or_default(),
        };
        let statistics = match rewrite.statistics.map(|s| s.file()) {
            None => None,
            Some(Some(file)) => Some(std::path::absolute(file).unwrap_or_default()),
            Some(None) => {
                let what = "statistics that are in no file can't go to another process";
                return Err(self.remote.error(&self.what, &PassError::new(what)));
            }
        };
        let ask = Ask::Run {
            call: self.call.clone(),
            base_dir,
            seed: rewrite.seed,
            statistics,
        };
        let text = print(module);
        let answer = self.remote.ask(&ask, &[text.as_bytes()], None);
        let answer = answer.map_err(|e| self.remote.error(&self.what, &e))?;
        let Answer::Rewritten {
            remarks: said,
            bytes,
        } = answer
        else {
            return Err(strange(&self.what));
        };
        remarks.extend(said);
        let Some(text) = bytes.first() else {
            return Ok(Patch::new(module, &rule));
        };
        let text = std::str::from_utf8(text).map_err(PassError::new)?;
        let mut whole = parse(text).map_err(|e| {
            self.remote.error(
                &self.what,
                &PassError::new(format!("the module that it made: {e}")),
            )
        })?;
        whole.base_dir = module.base_dir.clone();
        Ok(Patch::whole(module, &rule, whole))
    }
}

pub(super) struct RemoteKind {
    pub(super) remote: &'static Remote,
    pub(super) name: String,
    pub(super) summary: String,
}

impl RemoteKind {
    fn ask(&self, term: &CustomView<'_>, work: Work, x: &[f32]) -> Result<Answer> {
        let about = wire::Term {
            kind: self.name.clone(),
            rows: term.rows,
            cols: term.cols,
            attrs: term.attrs.clone(),
            tensors: term
                .tensors
                .iter()
                .map(|t| Tensor {
                    name: t.name.to_string(),
                    dtype: t.dtype,
                    shape: t.shape.to_vec(),
                })
                .collect(),
        };
        let x = floats(x);
        let mut blobs: Vec<&[u8]> = term.tensors.iter().map(|t| t.bytes).collect();
        blobs.push(&x);
        let answer = self
            .remote
            .ask(&Ask::Term { term: about, work }, &blobs, None);
        let what = format!("terms of the kind {}", self.name);
        answer.map_err(|e| self.remote.error(&what, &e))
    }
}

impl TermKind for RemoteKind {
    fn name(&self) -> &str {
        &self.name
    }

    fn summary(&self) -> &str {
        &self.summary
    }

    fn check(&self, term: &CustomView<'_>) -> Result<()> {
        self.ask(term, Work::Check, &[]).map(|_| ())
    }

    fn add_rows(&self, term: &CustomView<'_>, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let (first, count) = (rows.start, rows.len());
        match self.ask(term, Work::AddRows { first, count }, &[])? {
            Answer::Done { bytes } => {
                let values = bytes
                    .first()
                    .map_or(&[][..], Vec::as_slice)
                    .as_chunks::<4>()
                    .0;
                let each = out.iter_mut().zip(values);
                each.for_each(|(o, b)| *o += f32::from_le_bytes(*b));
                Ok(())
            }
            _ => Err(strange(&self.name)),
        }
    }

    fn multiply(
        &self,
        term: &CustomView<'_>,
        rows: Range<usize>,
        x: &[f32],
        out: &mut [f32],
    ) -> Option<Result<()>> {
        let (first, count) = (rows.start, rows.len());
        match self.ask(term, Work::Multiply { first, count }, x) {
            Ok(Answer::Nothing) => None,
            Ok(Answer::Done { bytes }) => {
                let values = bytes
                    .first()
                    .map_or(&[][..], Vec::as_slice)
                    .as_chunks::<4>()
                    .0;
                let each = out.iter_mut().zip(values);
                each.for_each(|(o, b)| *o = f32::from_le_bytes(*b));
                Some(Ok(()))
            }
            Ok(_) => Some(Err(strange(&self.name))),
            Err(error) => Some(Err(error)),
        }
    }

    fn backward(&self, term: &CustomView<'_>, dw: &[f32]) -> Option<Result<Vec<Vec<f32>>>> {
        match self.ask(term, Work::Backward, dw) {
            Ok(Answer::Nothing) => None,
            Ok(Answer::Done { bytes }) => {
                let values = |bytes: &Vec<u8>| {
                    let values = bytes.as_chunks::<4>().0.iter();
                    values.map(|b| f32::from_le_bytes(*b)).collect()
                };
                Some(Ok(bytes.iter().map(values).collect()))
            }
            Ok(_) => Some(Err(strange(&self.name))),
            Err(error) => Some(Err(error)),
        }
    }

    fn onnx(&self, term: &CustomView<'_>) -> Result<Option<OnnxForm>> {
        let (opset, tensors, nodes, output, bytes) = match self.ask(term, Work::Onnx, &[])? {
            Answer::Onnx {
                opset,
                tensors,
                nodes,
                output,
                bytes,
            } => (opset, tensors, nodes, output, bytes),
            Answer::Nothing => return Ok(None),
            _ => return Err(strange(&self.name)),
        };
        let tensor = |(t, bytes): (Tensor, Vec<u8>)| OnnxTensor {
            name: t.name,
            dtype: t.dtype,
            shape: t.shape,
            bytes,
        };
        let node = |n: wire::Node| OnnxNode {
            op_type: n.op_type,
            inputs: n.inputs,
            output: n.output,
            attrs: n.attrs,
        };
        Ok(Some(OnnxForm {
            opset,
            tensors: tensors.into_iter().zip(bytes).map(tensor).collect(),
            nodes: nodes.into_iter().map(node).collect(),
            output,
        }))
    }
}

pub(super) fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

impl wire::Quantizer {
    pub(super) fn of(q: &Quantizer) -> Self {
        let q = quantizer_out(q);
        Self {
            bits: q.bits,
            symmetric: q.symmetric,
            group: q.group,
            method: q.method,
            feedback: q.feedback,
        }
    }

    fn raw(&self) -> hlrc_pass_abi::HlrcQuantizer {
        hlrc_pass_abi::HlrcQuantizer {
            bits: self.bits,
            symmetric: self.symmetric,
            group: self.group,
            method: self.method,
            feedback: self.feedback,
        }
    }

    pub(super) fn read(&self) -> Result<Quantizer> {
        borrow::quantizer_in(&self.raw())
    }
}

impl wire::Traits {
    pub(super) fn of(pass: &dyn MatrixPass) -> Self {
        let traits = borrow::traits_out(pass);
        Self {
            access: traits.access,
            residual: traits.residual,
            calibration: traits.calibration,
            quantizes: traits.quantizes != 0,
            quantizer: pass.quantizer().as_ref().map(wire::Quantizer::of),
        }
    }

    pub(super) fn read(&self) -> Result<Traits> {
        borrow::traits_in(&hlrc_pass_abi::HlrcMatrixTraits {
            size: size_of::<hlrc_pass_abi::HlrcMatrixTraits>(),
            access: self.access,
            residual: self.residual,
            calibration: self.calibration,
            quantizes: u32::from(self.quantizes),
            has_quantizer: u32::from(self.quantizer.is_some()),
            quantizer: self.quantizer.map(|q| q.raw()).unwrap_or_default(),
        })
    }
}
