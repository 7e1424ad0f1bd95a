//! A small model in tract, compiled once for each set of input shapes.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

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

/// Longest that tract may read a model, or think about one set of shapes.
const LIMIT: Duration = Duration::from_secs(60);

/// Between two looks at whether somebody asked to stop.
const GLANCE: Duration = Duration::from_millis(50);

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
        let path = file.0.clone();
        let read = move || tract_onnx::onnx().model_for_path(&path);
        let model = match apart(read, Some(LIMIT), None) {
            Ok(Ok(model)) => Ok(model),
            Ok(Err(e)) => Err(format!("tract: {e:#}")),
            Err(why) => Err(why.told("reads")),
        };
        let model = model.map_err(|problem| label.unsupported(problem))?;
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
    /// Where somebody may ask to stop, this happens on a thread of its own, since tract does not ask.
    ///
    /// # Errors
    /// What tract refuses, or that it took too long; an interrupt.
    pub(super) fn run(
        &self,
        inputs: &[&Tensor],
        stop: Option<&'static AtomicBool>,
    ) -> Result<Vec<Tensor>, ExecError> {
        let shapes: Shapes = inputs
            .iter()
            .zip(&self.wanted)
            .map(|(tensor, wanted)| (given_type(tensor, *wanted), tensor.shape.clone()))
            .collect();
        let plan = self.plan(&shapes, stop)?;
        let found = match stop {
            None => run_plan(&plan, inputs, &self.wanted),
            Some(_) => {
                let inputs: Vec<Tensor> = inputs.iter().map(|&tensor| tensor.clone()).collect();
                let wanted = self.wanted.clone();
                let work = move || {
                    let inputs: Vec<&Tensor> = inputs.iter().collect();
                    run_plan(&plan, &inputs, &wanted)
                };
                match apart(work, None, stop) {
                    Ok(found) => found,
                    Err(Apart::Interrupted) => return Err(ExecError::Interrupted),
                    Err(Apart::Late | Apart::Gone) => Err("it gave up".to_string()),
                    Err(Apart::NoThread(why)) => Err(why),
                }
            }
        };
        found.map_err(|problem| self.label.unsupported(format!("tract: {problem}")))
    }

    fn plan(&self, shapes: &Shapes, stop: Option<&'static AtomicBool>) -> Result<Plan, ExecError> {
        let lock = || self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(plan) = lock().get(shapes) {
            return Ok(Arc::clone(plan));
        }
        let plan = self.compile(shapes, stop)?;
        let mut plans = lock();
        if plans.len() >= PLANS {
            plans.clear();
        }
        plans.insert(shapes.clone(), Arc::clone(&plan));
        Ok(plan)
    }

    /// Compiles on a thread of its own, since tract may not come back; such a thread is left alone.
    fn compile(
        &self,
        shapes: &Shapes,
        stop: Option<&'static AtomicBool>,
    ) -> Result<Plan, ExecError> {
        let (mut model, shapes) = (self.model.clone(), shapes.clone());
        let work = move || -> tract_onnx::prelude::TractResult<Plan> {
            for (i, (ty, shape)) in shapes.iter().enumerate() {
                model.set_input_fact(i, InferenceFact::dt_shape(*ty, shape))?;
            }
            model.into_optimized()?.into_runnable()
        };
        let problem = match apart(work, Some(LIMIT), stop) {
            Ok(Ok(plan)) => return Ok(plan),
            Err(Apart::Interrupted) => return Err(ExecError::Interrupted),
            Ok(Err(e)) => format!("tract: {e:#}"),
            Err(why) => why.told("plans"),
        };
        Err(self.label.unsupported(problem))
    }
}

/// Why work on another thread has no result.
enum Apart {
    Interrupted,
    /// It took longer than it may.
    Late,
    /// It panicked.
    Gone,
    NoThread(String),
}

impl Apart {
    /// What became of reading, or of planning.
    fn told(self, what: &str) -> String {
        match self {
            Apart::Late => format!("tract {what} it for more than {} seconds", LIMIT.as_secs()),
            Apart::Gone => "tract gave up".to_string(),
            Apart::NoThread(why) => why,
            Apart::Interrupted => "interrupted".to_string(),
        }
    }
}

/// Works on a thread of its own. Where `stop` is set or the time is up, that thread is left alone.
fn apart<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
    limit: Option<Duration>,
    stop: Option<&'static AtomicBool>,
) -> Result<T, Apart> {
    let (sender, receiver) = mpsc::channel();
    let work = move || {
        // Nobody listens any more where the time was up.
        let _ = sender.send(work());
    };
    let spawned = std::thread::Builder::new()
        .name("tract".to_string())
        .spawn(work);
    spawned.map_err(|e| Apart::NoThread(format!("no thread: {e}")))?;
    let start = Instant::now();
    loop {
        match receiver.recv_timeout(GLANCE) {
            Ok(done) => return Ok(done),
            Err(mpsc::RecvTimeoutError::Disconnected) => return Err(Apart::Gone),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
        }
        if stop.is_some_and(|stop| stop.load(Ordering::Relaxed)) {
            return Err(Apart::Interrupted);
        }
        if limit.is_some_and(|limit| start.elapsed() > limit) {
            return Err(Apart::Late);
        }
    }
}

/// Runs a plan.
fn run_plan(
    plan: &Plan,
    inputs: &[&Tensor],
    wanted: &[Option<DType>],
) -> Result<Vec<Tensor>, String> {
    let mut given = tvec!();
    for (tensor, wanted) in inputs.iter().zip(wanted) {
        let value = to_tract(tensor, *wanted).map_err(|e| format!("{e:#}"))?;
        given.push(value.into());
    }
    // A plan is not changed by a run, so one that panics leaves nothing half-done.
    let results = std::panic::catch_unwind(AssertUnwindSafe(|| plan.run(given)));
    let results = results.map_err(|_| "it panicked".to_string())?;
    let results = results.map_err(|e| format!("{e:#}"))?;
    let results = results.iter().map(|t| from_tract(t));
    let results: Result<Vec<Tensor>, _> = results.collect();
    results.map_err(|e| format!("{e:#}"))
}

/// The element type that an input is given as.
fn given_type(tensor: &Tensor, wanted: Option<DType>) -> DatumType {
    let own = match &tensor.data {
        Data::F32(_) => DatumType::F32,
        Data::I64(_) => DatumType::I64,
        Data::Bool(_) => DatumType::Bool,
    };
    wanted.and_then(datum_type).unwrap_or(own)
}

fn to_tract(tensor: &Tensor, wanted: Option<DType>) -> tract_onnx::prelude::TractResult<Tract> {
    let value = match &tensor.data {
        Data::F32(v) => Tract::from_shape(&tensor.shape, v)?,
        Data::I64(v) => Tract::from_shape(&tensor.shape, v)?,
        Data::Bool(v) => Tract::from_shape(&tensor.shape, v)?,
    };
    let wanted = given_type(tensor, wanted);
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
