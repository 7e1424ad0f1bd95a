//! `plugin check` of kinds of terms: what a kind can do besides decoding agrees with what it decodes.

use crate::ir::site::sites;
use crate::ir::text::parse;
use crate::pass::kind::{self, CustomView, OnnxForm, TermKind};
use crate::pass::terms::{CustomData, TermData};
use crate::pass::{MatrixPass, Peel};
use crate::store::Reader;
use crate::weights::read::{decode_f32, encode_f32};
use crate::weights::{DType, FileCache};

type Result<T> = std::result::Result<T, String>;

/// Tokens that a kernel is tried with.
const TOKENS: usize = 3;
/// Largest difference of a row decoded by itself, relative: sums may be rounded in another order.
const ROWS: f32 = 1e-5;
/// Largest difference of products, relative to the sum of the magnitudes that they are made of.
const PRODUCTS: f64 = 1e-4;
/// Largest difference between a slope and what a gradient says of it, relative: rules may be curved.
const SLOPES: f64 = 0.05;
/// How far values move for a slope, relative to their root mean square.
const STEP: f32 = 0.01;

/// Peels the first matrix of a module and checks the term, where it is of a plugin's kind: the kind and
/// what was found.
pub(super) fn checked(
    pass: &dyn MatrixPass,
    module: &str,
    statistics: bool,
) -> Result<Option<(String, String)>> {
    let module = parse(module).map_err(|e| e.to_string())?;
    let all = sites(&module);
    let site = all.first().ok_or("no matrix")?;
    let matrix = site.matrix(&module).ok_or("no matrix")?;
    let files = FileCache::default();
    let dense = Reader::new(&files).dense(&module, matrix);
    let mut residual = dense.map_err(|e| e.to_string())?;
    let (mut rotation, mut remarks) = (None, Vec::new());
    let moments = statistics.then(|| super::correlated(site.cols as usize));
    let mut peel = Peel {
        site: &site.name,
        rows: site.rows as usize,
        cols: site.cols as usize,
        residual: &mut residual,
        seed: 1,
        next: None,
        quantized_later: false,
        moments: moments.as_ref(),
        rotation: &mut rotation,
        rotation_seed: 1,
        earlier: Vec::new(),
        remarks: &mut remarks,
    };
    let peeled = pass.peel(&mut peel).map_err(|e| e.to_string())?;
    let Some(TermData::Custom(term)) = peeled.term else {
        return Ok(None);
    };
    let kind = kind::needed(&term.kind).map_err(|e| e.to_string())?;
    let view = term.view();
    kind.check(&view).map_err(|e| e.to_string())?;
    let named = |e: String| format!("terms of the kind {}: {e}", term.kind);
    let w = decoded(kind, &view).map_err(named)?;
    by_tiles(kind, &view, &w).map_err(named)?;
    let kernel = match multiplies(kind, &view, &w).map_err(named)? {
        true => "its kernel multiplies by that",
        false => "no kernel, rows are decoded",
    };
    let backward = match slopes(kind, &term, &w).map_err(named)? {
        Some(0) => "no tensor of its gradients is of f32, f16 or bf16",
        Some(_) => "its gradients are slopes",
        None => "no gradients, its tensors are constants",
    };
    let onnx = match kind.onnx(&view).map_err(|e| named(e.to_string()))? {
        Some(form) => {
            complete(&form).map_err(named)?;
            "its ONNX form is complete"
        }
        None => "no ONNX form, it is exported dense",
    };
    let found = format!("decodes by rows as a whole; {kernel}; {backward}; {onnx}");
    Ok(Some((term.kind.clone(), found)))
}

fn decoded(kind: &dyn TermKind, view: &CustomView<'_>) -> Result<Vec<f32>> {
    let mut w = vec![0f32; view.rows * view.cols];
    let added = kind.add_rows(view, 0..view.rows, &mut w);
    added.map_err(|e| e.to_string())?;
    match w.iter().position(|x| !x.is_finite()) {
        None => Ok(w),
        Some(at) => {
            let (row, col) = (at / view.cols, at % view.cols);
            Err(format!("[{row}, {col}] decodes to {}", w[at]))
        }
    }
}

/// Any rows are what they are in the whole, and are added to what is there.
fn by_tiles(kind: &dyn TermKind, view: &CustomView<'_>, w: &[f32]) -> Result<()> {
    for (first, count) in [(0, 1), (view.rows / 2, 7), (view.rows.saturating_sub(1), 1)] {
        let rows = first..(first + count).min(view.rows);
        let expected = &w[rows.start * view.cols..rows.end * view.cols];
        for start in [0f32, 1.0] {
            let mut out = vec![start; expected.len()];
            let added = kind.add_rows(view, rows.clone(), &mut out);
            added.map_err(|e| e.to_string())?;
            let differ = |(o, e): (&f32, &f32)| {
                let off = (o - (start + e)).abs();
                off > ROWS * (start + e.abs()) || o.is_nan()
            };
            if let Some(at) = out.iter().zip(expected).position(differ) {
                let (row, col) = (rows.start + at / view.cols, at % view.cols);
                let (has, whole) = (out[at], expected[at]);
                return Err(format!(
                    "rows {rows:?}, added to {start}: [{row}, {col}] becomes {has}; decoded as a whole it is {whole}"
                ));
            }
        }
    }
    Ok(())
}

/// Whether the kind has a kernel, which must give the products of the decoded matrix.
fn multiplies(kind: &dyn TermKind, view: &CustomView<'_>, w: &[f32]) -> Result<bool> {
    let cols = view.cols;
    let x: Vec<f32> = (0..TOKENS * cols).map(|i| noise(7, i)).collect();
    for rows in [0..view.rows, view.rows / 3..view.rows / 3 + 5] {
        let width = rows.len();
        // What was there before does not count.
        let mut out = vec![f32::NAN; TOKENS * width];
        match kind.multiply(view, rows.clone(), &x, &mut out) {
            None => return Ok(false),
            Some(done) => done.map_err(|e| e.to_string())?,
        }
        for (token, products) in out.chunks(width).enumerate() {
            for (row, &has) in rows.clone().zip(products) {
                let pairs = x[token * cols..][..cols]
                    .iter()
                    .zip(&w[row * cols..][..cols]);
                let terms = pairs.map(|(x, w)| f64::from(*x) * f64::from(*w));
                let (sum, size) = terms.fold((0.0, 0.0), |(s, m), t| (s + t, m + t.abs()));
                let off = (f64::from(has) - sum).abs();
                if off > PRODUCTS * size || has.is_nan() {
                    return Err(format!(
                        "its kernel gives {has} for row {row}, the decoded row gives {sum}"
                    ));
                }
            }
        }
    }
    Ok(true)
}

/// How many tensors of floats the backward rule was compared for; none where there is no rule.
fn slopes(kind: &dyn TermKind, term: &CustomData, w: &[f32]) -> Result<Option<usize>> {
    let dw: Vec<f32> = (0..w.len()).map(|i| noise(11, i)).collect();
    let Some(made) = kind.backward(&term.view(), &dw) else {
        return Ok(None);
    };
    let made = made.map_err(|e| e.to_string())?;
    let mut count = 0;
    for (at, gradient) in made.iter().enumerate() {
        let tensor = term.tensors.get(at).ok_or("more gradients than tensors")?;
        let Some(values) = floats(tensor.dtype, &tensor.bytes) else {
            continue;
        };
        if gradient.len() != values.len() {
            let (name, have, need) = (&tensor.name, gradient.len(), values.len());
            return Err(format!(
                "the gradient of `{name}` has {have} values of {need}"
            ));
        }
        let squares: f32 = values.iter().map(|v| v * v).sum();
        let size = (squares / values.len().max(1) as f32).sqrt();
        if size == 0.0 || gradient.iter().all(|g| *g == 0.0) {
            continue;
        }
        let moved = values.iter().enumerate();
        let moved: Vec<f32> = moved.map(|(i, v)| v + STEP * size * noise(13, i)).collect();
        let Some(bytes) = encode_f32(tensor.dtype, &moved) else {
            continue;
        };
        let mut other = term.clone();
        other.tensors[at].bytes = bytes;
        // As they are stored: the step is what it is behind rounding.
        let stored = floats(tensor.dtype, &other.tensors[at].bytes).unwrap_or_default();
        let there = decoded(kind, &other.view())?;
        let change = |a: &[f32], b: &[f32], by: &[f32]| -> (f64, f64) {
            let each = a.iter().zip(b).zip(by);
            let terms = each.map(|((a, b), g)| f64::from(a - b) * f64::from(*g));
            terms.fold((0.0, 0.0), |(sum, size), t| (sum + t, size + t.abs()))
        };
        let (is, _) = change(&there, w, &dw);
        let (said, size) = change(&stored, &values, gradient);
        // Where terms cancel each other, what is left of a curve is larger than what is left of them.
        let most = SLOPES * is.abs().max(said.abs()) + SLOPES / 10.0 * size;
        if (is - said).abs() > most {
            let name = &tensor.name;
            return Err(format!(
                "its gradient of `{name}` says that a step changes the loss by {said}; it changes by {is}"
            ));
        }
        count += 1;
    }
    Ok(Some(count))
}

fn floats(dtype: DType, bytes: &[u8]) -> Option<Vec<f32>> {
    let size = match dtype {
        DType::F32 => 4,
        DType::F16 | DType::BF16 => 2,
        _ => return None,
    };
    let mut values = vec![0f32; bytes.len() / size];
    decode_f32(dtype, bytes, &mut values).then_some(values)
}

/// Every input of a node, and the output, is made before it is used.
fn complete(form: &OnnxForm) -> Result<()> {
    let mut known: Vec<&str> = form.tensors.iter().map(|t| t.name.as_str()).collect();
    for tensor in &form.tensors {
        let need = tensor.dtype.bytes_for_shape(&tensor.shape);
        if need != Some(tensor.bytes.len() as u64) {
            let (name, have) = (&tensor.name, tensor.bytes.len());
            return Err(format!("its ONNX constant `{name}` has {have} bytes"));
        }
    }
    for node in &form.nodes {
        if let Some(missing) = node.inputs.iter().find(|i| !known.contains(&i.as_str())) {
            let op = &node.op_type;
            return Err(format!(
                "its ONNX node {op} reads `{missing}`, which nothing makes"
            ));
        }
        known.push(&node.output);
    }
    match known.contains(&form.output.as_str()) {
        true => Ok(()),
        false => Err(format!(
            "nothing makes the output `{}` of its ONNX form",
            form.output
        )),
    }
}

/// A number in −1 … 1 from a seed and a place.
fn noise(seed: u64, i: usize) -> f32 {
    let mut z = (seed << 32 | i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for _ in 0..3 {
        z = (z ^ (z >> 31)).wrapping_mul(0x94d0_49bb_1331_11eb);
    }
    ((z >> 11) as f64 / (1u64 << 52) as f64 - 1.0) as f32
}
