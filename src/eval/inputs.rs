//! Inputs of models that are not judged on text alone: token tensors, numpy archives.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use npyz::{DType, NpyFile, Order, TypeChar};

use super::{EvalError, Result};
use crate::exec::{Data, Engine, Tensor};

/// Most bytes of an array, unpacked.
const LARGEST: u64 = 4 << 30;

/// Named inputs of one run.
pub type Inputs = Vec<(String, Tensor)>;

/// What the engine takes for one sequence of tokens: ids, an attention mask of ones, token types of
/// zero, positions from zero, each `[1, tokens]`.
///
/// # Errors
/// [`EvalError::Inputs`] for an input that tokens do not tell.
pub fn token_inputs(engine: &Engine, model: &str, tokens: &[u32]) -> Result<Inputs> {
    let filled = |name: &str| {
        let all = |value: i64| vec![value; tokens.len()];
        let lower = name.to_ascii_lowercase();
        let values = if lower.contains("past") || lower.contains("cache") {
            return None;
        } else if lower.contains("mask") {
            all(1)
        } else if lower.contains("type") || lower.contains("segment") {
            all(0)
        } else if lower.contains("position") {
            (0i64..).take(tokens.len()).collect()
        } else if lower.contains("ids") || lower.contains("tokens") || engine.inputs().len() == 1 {
            tokens.iter().map(|&t| i64::from(t)).collect()
        } else {
            return None;
        };
        Some(Tensor::i64(&[1, tokens.len()], values))
    };
    let one = |port: &crate::exec::Port| match filled(&port.name) {
        Some(tensor) => Ok((port.name.clone(), tensor)),
        None => Err(EvalError::Inputs {
            path: model.into(),
            problem: format!(
                "text does not say what input `{}` is; give all inputs with --inputs x.npz",
                port.name
            ),
        }),
    };
    engine.inputs().iter().map(one).collect()
}

/// The arrays of a `.npz` archive by name, as numpy's `savez` and `savez_compressed` write it.
///
/// Floats become f32, integers i64. Arrays are at most 4 GiB each.
///
/// # Errors
/// [`EvalError::Inputs`] for what is no archive, or an array of another type or order.
pub fn read_npz(path: &Path) -> Result<Inputs> {
    let fault = |problem: String| EvalError::Inputs {
        path: path.to_path_buf(),
        problem,
    };
    let file = File::open(path).map_err(|e| fault(format!("can't be read: {e}")))?;
    let archive = zip::ZipArchive::new(BufReader::new(file));
    let mut archive =
        archive.map_err(|e| fault(format!("is no .npz archive ({e}); numpy.savez writes them")))?;
    let mut out = Inputs::new();
    for index in 0..archive.len() {
        let entry = archive.by_index(index).map_err(|e| fault(e.to_string()))?;
        let name = entry.name().map_err(|e| fault(e.to_string()))?.into_owned();
        let Some(name) = name.strip_suffix(".npy").map(str::to_string) else {
            continue;
        };
        let size = entry.size().min(LARGEST);
        let tensor =
            array(entry, size).map_err(|problem| fault(format!("array `{name}`: {problem}")))?;
        out.push((name, tensor));
    }
    match out.is_empty() {
        true => Err(fault("holds no arrays".to_string())),
        false => Ok(out),
    }
}

/// One array; `size` is what the archive says that it has of bytes.
fn array(reader: impl std::io::Read, size: u64) -> Result<Tensor, String> {
    let file = NpyFile::new(reader).map_err(|e| e.to_string())?;
    let DType::Plain(dtype) = file.dtype() else {
        return Err("is an array of records".to_string());
    };
    let mut count = 1u64;
    for &axis in file.shape() {
        count = count.checked_mul(axis).ok_or("its shape overflows")?;
    }
    let bytes = count.checked_mul(dtype.size_field().max(1));
    if bytes.is_none_or(|bytes| bytes > size) {
        return Err(format!(
            "its shape {:?} does not fit its {size} bytes",
            file.shape()
        ));
    }
    if file.order() == Order::Fortran && file.shape().len() > 1 {
        return Err("is stored column by column; save numpy.ascontiguousarray(x)".to_string());
    }
    let shape = file
        .shape()
        .iter()
        .map(|&n| usize::try_from(n).map_err(|e| e.to_string()));
    let shape = shape.collect::<Result<Vec<usize>, String>>()?;
    let told = dtype.to_string();
    let data = match (dtype.type_char(), dtype.size_field()) {
        (TypeChar::Float, 4) => Data::F32(values::<f32, f32>(file, |x| x)?),
        (TypeChar::Float, 8) => Data::F32(values::<f64, f32>(file, |x| x as f32)?),
        (TypeChar::Int, 1) => Data::I64(values::<i8, i64>(file, i64::from)?),
        (TypeChar::Int, 2) => Data::I64(values::<i16, i64>(file, i64::from)?),
        (TypeChar::Int, 4) => Data::I64(values::<i32, i64>(file, i64::from)?),
        (TypeChar::Int, 8) => Data::I64(values::<i64, i64>(file, |x| x)?),
        (TypeChar::Uint, 1) => Data::I64(values::<u8, i64>(file, i64::from)?),
        (TypeChar::Uint, 2) => Data::I64(values::<u16, i64>(file, i64::from)?),
        (TypeChar::Uint, 4) => Data::I64(values::<u32, i64>(file, i64::from)?),
        (TypeChar::Bool, _) => Data::Bool(values::<bool, bool>(file, |x| x)?),
        _ => {
            return Err(format!(
                "has the type {told}; use float32, float64, an integer type up to int64, or bool"
            ));
        }
    };
    Ok(Tensor { shape, data })
}

fn values<T: npyz::Deserialize, U>(
    file: NpyFile<impl std::io::Read>,
    widen: impl Fn(T) -> U,
) -> Result<Vec<U>, String> {
    let data = file.data::<T>().map_err(|e| e.to_string())?;
    data.map(|value| value.map(&widen).map_err(|e| e.to_string()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use npyz::WriterBuilder;
    use std::io::Write;

    fn npy<T: npyz::AutoSerialize + Copy>(shape: &[u64], order: Order, values: &[T]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = npyz::WriteOptions::new()
            .default_dtype()
            .order(order)
            .shape(shape)
            .writer(&mut bytes)
            .begin_nd()
            .expect("begun");
        writer.extend(values.iter().copied()).expect("written");
        writer.finish().expect("finished");
        bytes
    }

    fn npz(arrays: &[(&str, Vec<u8>)]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let mut zip = zip::ZipWriter::new(file.reopen().expect("again"));
        for (name, bytes) in arrays {
            zip.start_file(*name, zip::write::SimpleFileOptions::default())
                .expect("started");
            zip.write_all(bytes).expect("written");
        }
        zip.finish().expect("finished");
        file
    }

    #[test]
    fn arrays_come_as_they_were_saved() {
        let file = npz(&[
            ("x.npy", npy(&[2, 2], Order::C, &[1.5f64, -2.0, 0.0, 4.0])),
            ("ids.npy", npy(&[3], Order::C, &[7i32, 8, 9])),
            ("readme.txt", b"no array".to_vec()),
        ]);
        let inputs = read_npz(file.path()).expect("read");
        assert_eq!(
            inputs,
            [
                (
                    "x".to_string(),
                    Tensor::f32(&[2, 2], vec![1.5, -2.0, 0.0, 4.0])
                ),
                ("ids".to_string(), Tensor::i64(&[3], vec![7, 8, 9])),
            ]
        );
    }

    #[test]
    fn what_is_none_is_told() {
        let told = |bytes: Vec<u8>| {
            let file = npz(&[("x.npy", bytes)]);
            read_npz(file.path()).expect_err("refused").to_string()
        };
        assert!(
            told(npy(&[2, 2], Order::Fortran, &[1f32, 2.0, 3.0, 4.0]))
                .contains("ascontiguousarray")
        );
        assert!(told(b"\x93NUMPY".to_vec()).contains("array `x`"));
        let mut short = npy(&[2], Order::C, &[1f32, 2.0]);
        short.truncate(short.len() - 5);
        assert!(told(short).contains("array `x`"));
        let mut huge = npy(&[7], Order::C, &[1f32; 7]);
        let at = huge.windows(3).position(|w| w == b"(7,").expect("a shape");
        huge.splice(at + 1..at + 2, *b"70000000000");
        assert!(told(huge).contains("array `x`"));
        let file = tempfile::NamedTempFile::new().expect("a file");
        assert!(
            read_npz(file.path())
                .expect_err("empty")
                .to_string()
                .contains("no .npz")
        );
        assert!(read_npz(Path::new("/nowhere.npz")).is_err());
    }
}
