//! A small model in tract, compiled once for each set of input shapes.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use tract_onnx::prelude::{
    DatumType, Framework, InferenceFact, InferenceModel, InferenceModelExt, IntoRunnable,
    Tensor as Tract, TypedRunnableModel, tvec,
};

use super::super::{Data, ExecError, Tensor};
use super::Label;
use crate::export::onnx::{Options, export};
use crate::ir::{Module, Type};
use crate::store::Reader;
use crate::weights::DType;

/// Longest that tract may think about one set of shapes.
const LIMIT: Duration = Duration::from_secs(60);

/// Sets of shapes whose plans are kept.
const PLANS: usize = 16;

type Plan = Arc<TypedRunnableModel>;
type Shapes = Vec<(DatumType, Vec<usize>)>;

/// A model, and the plans made of it.
pub(super) struct Runner {
    model: InferenceModel,
    /// Element type that each input is declared with.
    wanted: Vec<Option<DType>>,
    plans: Mutex<HashMap<Shapes, Plan>>,
    label: Label,
}

/// A file that is removed at the end.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // A file left in the temporary folder harms nobody.
        let _ = std::fs::remove_file(&self.0);
        let _ = std::fs::remove_file(self.0.with_extension("onnx.data"));
    }
}

fn temporary() -> Temporary {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let (process, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    Temporary(std::env::temp_dir().join(format!("hlrc-part-{process}-{count}.onnx")))
}

impl Runner {
    /// Hands a module of ONNX ops to tract.
    ///
    /// # Errors
    /// An op or element type that tract does not read.
    pub(super) fn new(part: &Module, reader: &Reader, label: Label) -> Result<Self, ExecError> {
        let file = temporary();
        export(part, reader.files(), &file.0, Options::default())
            .map_err(|e| label.unsupported(e.to_string()))?;
        let model = tract_onnx::onnx().model_for_path(&file.0);
        let model = model.map_err(|e| label.unsupported(format!("tract: {e:#}")))?;
        let graph = part.graphs.first();
        let declared = |v: &crate::ir::ValueId| {
            let ty = graph.and_then(|g| g.value(*v)).and_then(|v| v.ty.as_ref());
            ty.and_then(Type::as_tensor).map(|t| t.dtype)
        };
        let inputs = graph.map(|g| g.body.inputs.as_slice()).unwrap_or_default();
        Ok(Self {
            model,
            wanted: inputs.iter().map(declared).collect(),
            plans: Mutex::new(HashMap::new()),
            label,
        })
    }

    /// Runs the model.
    ///
    /// # Errors
    /// What tract refuses, or that it took too long.
    pub(super) fn run(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, ExecError> {
        let fault = |e: &dyn std::fmt::Display| self.label.unsupported(format!("tract: {e}"));
        let mut given = tvec!();
        for (tensor, wanted) in inputs.iter().zip(&self.wanted) {
            let value = to_tract(tensor, *wanted).map_err(|e| fault(&format!("{e:#}")))?;
            given.push(value);
        }
        let shapes: Shapes = given
            .iter()
            .map(|t| (t.datum_type(), t.shape().to_vec()))
            .collect();
        let plan = self.plan(&shapes)?;
        let given = given.into_iter().map(Into::into).collect();
        // A plan is not changed by a run, so one that panics leaves nothing half-done.
        let results = std::panic::catch_unwind(AssertUnwindSafe(|| plan.run(given)));
        let results = results.map_err(|_| fault(&"it panicked"))?;
        let results = results.map_err(|e| fault(&format!("{e:#}")))?;
        let results = results.iter().map(|t| from_tract(t));
        let results: Result<Vec<Tensor>, _> = results.collect();
        results.map_err(|e| fault(&format!("{e:#}")))
    }

    fn plan(&self, shapes: &Shapes) -> Result<Plan, ExecError> {
        let lock = || self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(plan) = lock().get(shapes) {
            return Ok(Arc::clone(plan));
        }
        let plan = self.compile(shapes)?;
        let mut plans = lock();
        if plans.len() >= PLANS {
            plans.clear();
        }
        plans.insert(shapes.clone(), Arc::clone(&plan));
        Ok(plan)
    }

    /// Compiles on a thread of its own, since tract may not come back; such a thread is left alone.
    fn compile(&self, shapes: &Shapes) -> Result<Plan, ExecError> {
        let (sender, receiver) = mpsc::channel();
        let (mut model, shapes) = (self.model.clone(), shapes.clone());
        let work = move || {
            let plan = (|| {
                for (i, (ty, shape)) in shapes.iter().enumerate() {
                    model.set_input_fact(i, InferenceFact::dt_shape(*ty, shape))?;
                }
                model.into_optimized()?.into_runnable()
            })();
            // Nobody listens any more where the time was up.
            let _ = sender.send(plan);
        };
        let spawned = std::thread::Builder::new()
            .name("tract".to_string())
            .spawn(work);
        if let Err(e) = spawned {
            return Err(self.label.unsupported(format!("no thread: {e}")));
        }
        match receiver.recv_timeout(LIMIT) {
            Ok(Ok(plan)) => Ok(plan),
            Ok(Err(e)) => Err(self.label.unsupported(format!("tract: {e:#}"))),
            Err(mpsc::RecvTimeoutError::Timeout) => Err(self.label.unsupported(format!(
                "tract found no plan within {} seconds",
                LIMIT.as_secs()
            ))),
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                Err(self.label.unsupported("tract gave up".to_string()))
            }
        }
    }
}

fn to_tract(tensor: &Tensor, wanted: Option<DType>) -> tract_onnx::prelude::TractResult<Tract> {
    let value = match &tensor.data {
        Data::F32(v) => Tract::from_shape(&tensor.shape, v)?,
        Data::I64(v) => Tract::from_shape(&tensor.shape, v)?,
        Data::Bool(v) => Tract::from_shape(&tensor.shape, v)?,
    };
    let wanted = wanted.and_then(datum_type).unwrap_or(value.datum_type());
    Ok(value.cast_to_dt(wanted)?.into_owned())
}

fn from_tract(tensor: &Tract) -> tract_onnx::prelude::TractResult<Tensor> {
    let shape = tensor.shape().to_vec();
    let data = match tensor.datum_type() {
        DatumType::F32 | DatumType::F16 | DatumType::F64 => {
            let cast = tensor.cast_to::<f32>()?;
            Data::F32(cast.try_as_plain_ram()?.as_slice::<f32>()?.to_vec())
        }
        DatumType::Bool => Data::Bool(tensor.try_as_plain_ram()?.as_slice::<bool>()?.to_vec()),
        _ => {
            let cast = tensor.cast_to::<i64>()?;
            Data::I64(cast.try_as_plain_ram()?.as_slice::<i64>()?.to_vec())
        }
    };
    Ok(Tensor { shape, data })
}

fn datum_type(dtype: DType) -> Option<DatumType> {
    Some(match dtype {
        DType::F32 => DatumType::F32,
        DType::F16 => DatumType::F16,
        DType::F64 => DatumType::F64,
        DType::I64 => DatumType::I64,
        DType::I32 => DatumType::I32,
        DType::I16 => DatumType::I16,
        DType::I8 => DatumType::I8,
        DType::U8 => DatumType::U8,
        DType::U16 => DatumType::U16,
        DType::U32 => DatumType::U32,
        DType::U64 => DatumType::U64,
        DType::Bool => DatumType::Bool,
        _ => return None,
    })
}
