//! The child's side: one question after the other, until the pipe ends.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use memmap2::MmapMut;

use super::super::{Plugin, borrow, load, set_seed, stated::Stated};
use super::passes::floats;
use super::wire::{self, About, AboutPass, Answer, Ask, Call, Parts, Work, receive, send};
use crate::ir::Rotation;
use crate::ir::text::{parse, print};
use crate::pass::interface::{
    Earlier, MatrixPass, MomentSource, Moments, Pass, Peel, Place, Rewrite, Stored,
};
use crate::pass::kind::{self, CustomView, TensorView};
use crate::weights::DType;

type Result<T, E = String> = std::result::Result<T, E>;

/// Opens a file of statistics of activations.
pub type OpenStatistics = fn(&Path) -> Result<Box<dyn MomentSource>>;

/// Answers questions about the plugin at `path` until `from` ends. `shared` is the file that matrices are in;
/// its name is taken away.
///
/// # Errors
/// The pipe or the shared file can't be used.
pub fn serve(
    path: &Path,
    shared: &Path,
    statistics: OpenStatistics,
    from: &mut impl Read,
    to: &mut impl Write,
) -> std::io::Result<()> {
    let file = File::options().read(true).write(true).open(shared)?;
    std::fs::remove_file(shared)?;
    let mut server = Server {
        plugin: load(path, false).map_err(|e| e.to_string()),
        statistics,
        built: None,
        file,
        map: None,
    };
    while let Some((ask, bytes)) = receive::<Ask>(from)? {
        let mut answer = server
            .answer(ask, bytes)
            .unwrap_or_else(|message| Answer::Failed { message });
        let bytes = answer.bytes_mut().map(std::mem::take).unwrap_or_default();
        let blobs: Vec<&[u8]> = bytes.iter().map(Vec::as_slice).collect();
        send(to, &answer, &blobs)?;
    }
    Ok(())
}

struct Server {
    plugin: Result<&'static Plugin>,
    statistics: OpenStatistics,
    /// The pass that was asked for last.
    built: Option<(Call, Pass)>,
    file: File,
    map: Option<MmapMut>,
}

impl Server {
    fn answer(&mut self, ask: Ask, bytes: Vec<Vec<u8>>) -> Result<Answer> {
        let plugin = self.plugin.as_ref().map_err(String::clone)?;
        match ask {
            Ask::Describe => Ok(Answer::Plugin(about(plugin))),
            Ask::Build(call) => Ok(match self.pass(&call)? {
                Pass::Module(pass) => Answer::Module {
                    calibration: borrow::calibration_out(pass.calibration()),
                },
                Pass::Matrix(pass) => Answer::Matrix(wire::Traits::of(pass.as_ref())),
            }),
            Ask::Cost { call, rows, cols } => {
                let cost = self.matrix(&call)?.cost(rows, cols);
                let cost = cost.map_err(|e| e.to_string())?;
                Ok(Answer::Cost {
                    workspace_bytes: cost.workspace_bytes,
                    term_bytes: cost.term_bytes,
                    nanos: cost.nanos,
                })
            }
            Ask::Peel(call, peel) => self.peel(&call, *peel, bytes),
            Ask::PeelStored {
                call,
                stored,
                site,
                seed,
            } => {
                let place = Place { site: &site, seed };
                self.peel_stored(&call, stored, place, &bytes)
            }
            Ask::Run {
                call,
                base_dir,
                seed,
                statistics,
            } => {
                let open = self.statistics;
                let statistics = statistics.map(|file| open(&file)).transpose()?;
                let Pass::Module(pass) = self.pass(&call)? else {
                    return Err(format!("pass {} is no module pass", call.pass));
                };
                let text = bytes.first().map_or(&[][..], Vec::as_slice);
                let text = std::str::from_utf8(text).map_err(|e| e.to_string())?;
                let mut module = parse(text).map_err(|e| e.to_string())?;
                module.base_dir = base_dir;
                let mut remarks = Vec::new();
                let patch = pass.run(&mut Rewrite {
                    module: &module,
                    seed,
                    statistics: statistics.as_deref(),
                    remarks: &mut remarks,
                });
                let patch = patch.map_err(|e| e.to_string())?;
                let mut bytes = Vec::new();
                if !patch.is_empty() {
                    patch.apply(&mut module).map_err(|e| e.to_string())?;
                    bytes.push(print(&module).into_bytes());
                }
                Ok(Answer::Rewritten { remarks, bytes })
            }
            Ask::Term { term, work } => term_work(&term, work, &bytes),
        }
    }

    fn pass(&mut self, call: &Call) -> Result<&Pass> {
        if self.built.as_ref().is_none_or(|(known, _)| known != call) {
            let plugin = self.plugin.as_ref().map_err(String::clone)?;
            let entry = plugin.passes.iter().find(|e| e.name == call.pass);
            let entry = entry.ok_or_else(|| format!("there is no pass {}", call.pass))?;
            set_seed(call.seed);
            let pass = (entry.build)(call.options.clone()).map_err(|e| e.to_string())?;
            self.built = Some((call.clone(), pass));
        }
        let built = self.built.as_ref().map(|(_, pass)| pass);
        built.ok_or_else(|| "no pass".to_string())
    }

    fn matrix(&mut self, call: &Call) -> Result<&dyn MatrixPass> {
        match self.pass(call)? {
            Pass::Matrix(pass) => Ok(pass.as_ref()),
            Pass::Module(_) => Err(format!("pass {} is no matrix pass", call.pass)),
        }
    }

    /// The matrix in the shared file; call [`Self::put`] to send it back.
    fn take(&mut self, entries: usize) -> Result<Vec<f32>> {
        let len = entries.checked_mul(4).ok_or("a matrix that is too large")?;
        let fault = |e: std::io::Error| format!("the shared file: {e}");
        let long_enough = self.map.as_ref().is_some_and(|m| m.len() >= len);
        if !long_enough {
            if self.file.metadata().map_err(fault)?.len() < len as u64 {
                return Err("the shared file is shorter than its matrix".to_string());
            }
            // SAFETY: the file is this process's and its parent's, which waits for the answer; its name is
            // gone, and it never gets shorter.
            self.map = Some(unsafe { MmapMut::map_mut(&self.file) }.map_err(fault)?);
        }
        let bytes = self.map.as_ref().and_then(|m| m.get(..len)).unwrap_or(&[]);
        let values = bytes.as_chunks::<4>().0.iter();
        Ok(values.map(|b| f32::from_le_bytes(*b)).collect())
    }

    fn put(&mut self, values: &[f32]) {
        let bytes = self.map.as_deref_mut().unwrap_or(&mut []);
        let each = bytes.chunks_exact_mut(4).zip(values);
        each.for_each(|(b, x)| b.copy_from_slice(&x.to_le_bytes()));
    }

    fn peel(&mut self, call: &Call, about: wire::Peel, bytes: Vec<Vec<u8>>) -> Result<Answer> {
        let entries = about
            .rows
            .checked_mul(about.cols)
            .ok_or("a matrix that is too large")?;
        let mut residual = self.take(entries)?;
        let mut bytes = bytes.into_iter();
        let mut numbers = || -> Result<Vec<f32>> {
            let bytes = bytes.next().ok_or("too few bytes came")?;
            let values = bytes.as_chunks::<4>().0.iter();
            Ok(values.map(|b| f32::from_le_bytes(*b)).collect())
        };
        let moments = match about.moments {
            None => None,
            Some((tokens, whole)) => Some(Moments {
                diagonal: numbers()?,
                hessian: if whole { Some(numbers()?) } else { None },
                tokens,
            }),
        };
        let (mut passes, mut terms) = (Vec::new(), Vec::new());
        for (traits, parts) in about.earlier {
            passes.push(Stated::earlier(traits.read().map_err(|e| e.to_string())?));
            terms.push(parts.term(&mut bytes)?);
        }
        let before: Vec<_> = terms.iter().cloned().map(Parts::of).collect();
        let rotation = |[out_block, in_block, seed]: [u64; 3]| Rotation {
            out_block,
            in_block,
            seed,
        };
        let mut rotation = about.rotation.map(rotation);
        let next = about
            .next
            .map(|q| q.read())
            .transpose()
            .map_err(|e| e.to_string())?;
        let mut remarks = Vec::new();
        let earlier = passes.iter().zip(&mut terms);
        let mut peel = Peel {
            site: &about.site,
            rows: about.rows,
            cols: about.cols,
            residual: &mut residual,
            seed: about.seed,
            next,
            quantized_later: about.quantized_later,
            moments: moments.as_ref(),
            rotation: &mut rotation,
            rotation_seed: about.rotation_seed,
            earlier: earlier.map(|(pass, term)| Earlier { pass, term }).collect(),
            remarks: &mut remarks,
        };
        let peeled = self
            .matrix(call)?
            .peel(&mut peel)
            .map_err(|e| e.to_string())?;
        self.put(&residual);
        let mut bytes = Vec::new();
        let term = peeled.term.map(|term| {
            let (parts, more) = Parts::of(term);
            bytes.extend(more);
            parts
        });
        let mut earlier = Vec::new();
        for (index, (term, before)) in terms.into_iter().zip(before).enumerate() {
            let (parts, more) = Parts::of(term);
            if (&parts.spec, &more) != (&before.0.spec, &before.1) {
                earlier.push((index, parts));
                bytes.extend(more);
            }
        }
        Ok(Answer::Peeled {
            term,
            note: peeled.note,
            rotation: rotation.map(|r| [r.out_block, r.in_block, r.seed]),
            remarks,
            earlier,
            bytes,
        })
    }

    fn peel_stored(
        &mut self,
        call: &Call,
        stored: wire::Stored,
        place: Place<'_>,
        bytes: &[Vec<u8>],
    ) -> Result<Answer> {
        let bytes = bytes.first().map_or(&[][..], Vec::as_slice);
        let (rows, cols) = (stored.rows, stored.cols);
        let stored = match stored.dtype {
            DType::F32 => Stored::F32 { bytes, rows, cols },
            DType::F16 => Stored::F16 { bytes, rows, cols },
            DType::BF16 => Stored::Bf16 { bytes, rows, cols },
            other => return Err(format!("stored rows of {other}")),
        };
        match self.matrix(call)?.peel_stored(stored, place) {
            None => Ok(Answer::Nothing),
            Some(Err(error)) => Err(error.to_string()),
            Some(Ok(peeled)) => {
                let (term, bytes) = Parts::of(peeled.term);
                Ok(Answer::PeeledStored {
                    term,
                    weight_squares: peeled.weight_squares,
                    residual_squares: peeled.residual_squares,
                    bytes,
                })
            }
        }
    }
}

fn about(plugin: &Plugin) -> About {
    let pass = |entry: &crate::pass::PassEntry| AboutPass {
        name: entry.name.to_string(),
        summary: entry.summary.to_string(),
        doc: entry.doc.to_string(),
        schema: (entry.schema)(),
    };
    About {
        name: plugin.name.to_string(),
        version: plugin.version.clone(),
        abi: plugin.abi,
        passes: plugin.passes.iter().map(pass).collect(),
        kinds: plugin.kinds.clone(),
    }
}

fn term_work(term: &wire::Term, work: Work, bytes: &[Vec<u8>]) -> Result<Answer> {
    let kind = kind::needed(&term.kind).map_err(|e| e.to_string())?;
    let tensors = term.tensors.iter().zip(bytes);
    let view = CustomView {
        rows: term.rows,
        cols: term.cols,
        attrs: &term.attrs,
        tensors: tensors
            .map(|(t, bytes)| TensorView {
                name: &t.name,
                dtype: t.dtype,
                shape: &t.shape,
                bytes,
            })
            .collect(),
    };
    let x = bytes.get(term.tensors.len()).map_or(&[][..], Vec::as_slice);
    let x: Vec<f32> = x
        .as_chunks::<4>()
        .0
        .iter()
        .map(|b| f32::from_le_bytes(*b))
        .collect();
    let room = |count: usize, each: usize| -> Result<Vec<f32>> {
        Ok(vec![
            0f32;
            count
                .checked_mul(each)
                .ok_or("more rows than memory has")?
        ])
    };
    let done = |values: Vec<f32>| Answer::Done {
        bytes: vec![floats(&values)],
    };
    match work {
        Work::Check => {
            kind.check(&view).map_err(|e| e.to_string())?;
            Ok(done(Vec::new()))
        }
        Work::AddRows { first, count } => {
            let mut out = room(count, term.cols)?;
            let added = kind.add_rows(&view, first..first.saturating_add(count), &mut out);
            added.map_err(|e| e.to_string())?;
            Ok(done(out))
        }
        Work::Multiply { first, count } => {
            let tokens = x.len().checked_div(term.cols).unwrap_or(0);
            let mut out = room(count, tokens)?;
            let multiplied = kind.multiply(&view, first..first.saturating_add(count), &x, &mut out);
            match multiplied {
                None => Ok(Answer::Nothing),
                Some(result) => result.map(|()| done(out)).map_err(|e| e.to_string()),
            }
        }
        Work::Backward => match kind.backward(&view, &x) {
            None => Ok(Answer::Nothing),
            Some(Err(error)) => Err(error.to_string()),
            Some(Ok(gradients)) => Ok(Answer::Done {
                bytes: gradients.iter().map(|g| floats(g)).collect(),
            }),
        },
        Work::Onnx => Ok(match kind.onnx(&view).map_err(|e| e.to_string())? {
            None => Answer::Nothing,
            Some(form) => {
                let node = |n: kind::OnnxNode| wire::Node {
                    op_type: n.op_type,
                    inputs: n.inputs,
                    output: n.output,
                    attrs: n.attrs,
                };
                let about = |t: &kind::OnnxTensor| wire::Tensor {
                    name: t.name.clone(),
                    dtype: t.dtype,
                    shape: t.shape.clone(),
                };
                Answer::Onnx {
                    opset: form.opset,
                    tensors: form.tensors.iter().map(about).collect(),
                    nodes: form.nodes.into_iter().map(node).collect(),
                    output: form.output,
                    bytes: form.tensors.into_iter().map(|t| t.bytes).collect(),
                }
            }
        }),
    }
}
