//! Inputs of models that are not judged on text alone: token tensors, numpy archives.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use npyz::{DType, NpyFile, Order, TypeChar};

use super::{EvalError, Result};
use crate::exec::{Data, Engine, ExecError, Tensor};
use crate::report::human;

/// Most bytes of all arrays in memory, widened to what the executor computes with.
pub const LARGEST: u64 = 1 << 30;
/// Most arrays of an archive.
const ARRAYS: usize = 1024;
/// Most bytes of an array's header; numpy's are below 200.
const HEADER: u32 = 64 << 10;
/// Numbers between two looks at whether somebody asked to stop.
const GLANCE: usize = 1 << 16;
/// Letters of a reader's message that are passed on.
const TOLD: usize = 160;

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
/// Floats become f32, integers i64. `room` is how many bytes they may take; what they take is taken off.
///
/// # Errors
/// [`EvalError::Inputs`] for what is no archive, an array of another type or order, or too many numbers;
/// [`ExecError::Interrupted`] once `stop` is set.
pub fn read_npz(path: &Path, room: &mut u64, stop: &AtomicBool) -> Result<Inputs> {
    let fault = |problem: String| EvalError::Inputs {
        path: path.to_path_buf(),
        problem,
    };
    let file = File::open(path).map_err(|e| fault(format!("can't be read: {e}")))?;
    let archive = zip::ZipArchive::new(BufReader::new(file));
    let mut archive =
        archive.map_err(|e| fault(format!("is no .npz archive ({e}); numpy.savez writes them")))?;
    if archive.len() > ARRAYS {
        let problem = format!("holds {} files; it may hold {ARRAYS}", archive.len());
        return Err(fault(problem));
    }
    let mut out = Inputs::new();
    for index in 0..archive.len() {
        let entry = archive.by_index(index).map_err(|e| fault(e.to_string()))?;
        let name = entry.name().map_err(|e| fault(e.to_string()))?.into_owned();
        let Some(name) = name.strip_suffix(".npy").map(str::to_string) else {
            continue;
        };
        let size = entry.size();
        let tensor = array(entry, size, (&mut *room, stop));
        if stop.load(Ordering::Relaxed) {
            return Err(EvalError::Exec {
                model: path.display().to_string(),
                source: ExecError::Interrupted,
            });
        }
        let tensor = tensor.map_err(|problem| fault(format!("array `{name}`: {problem}")))?;
        out.push((name, tensor));
    }
    match out.is_empty() {
        true => Err(fault("holds no arrays".to_string())),
        false => Ok(out),
    }
}

/// The bytes in front of an array's header: magic, version, the header's length.
const FRONT: u64 = 12;

/// One array; `size` is what the archive says that it has of bytes.
fn array(
    mut reader: impl Read,
    size: u64,
    (room, stop): (&mut u64, &AtomicBool),
) -> Result<Tensor, String> {
    let mut front = Vec::new();
    let read = (&mut reader).take(FRONT).read_to_end(&mut front);
    read.map_err(|e| e.to_string())?;
    if let [_, _, _, _, _, _, version, _, length @ ..] = front.as_slice()
        && *version >= 2
        && let Ok(length) = <[u8; 4]>::try_from(length)
        && u32::from_le_bytes(length) > HEADER
    {
        return Err(format!(
            "its header has {} bytes; it may have {HEADER}",
            u32::from_le_bytes(length)
        ));
    }
    let whole = front.as_slice().chain(reader);
    let file = NpyFile::new(whole).map_err(|e| brief(&e.to_string()))?;
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
    let width = match dtype.type_char() {
        TypeChar::Float => size_of::<f32>(),
        TypeChar::Bool => size_of::<bool>(),
        _ => size_of::<i64>(),
    };
    let taken = count.saturating_mul(width as u64);
    let Some(left) = room.checked_sub(taken) else {
        return Err(format!(
            "takes {} in memory, where {} are left of {} for all inputs; give fewer or shorter ones",
            human::size(taken),
            human::size(*room),
            human::size(LARGEST)
        ));
    };
    *room = left;
    let shape = file
        .shape()
        .iter()
        .map(|&n| usize::try_from(n).map_err(|e| e.to_string()));
    let shape = shape.collect::<Result<Vec<usize>, String>>()?;
    let told = dtype.to_string();
    let data = match (dtype.type_char(), dtype.size_field()) {
        (TypeChar::Float, 4) => Data::F32(values::<f32, f32>(file, stop, |x| x)?),
        (TypeChar::Float, 8) => Data::F32(values::<f64, f32>(file, stop, |x| x as f32)?),
        (TypeChar::Int, 1) => Data::I64(values::<i8, i64>(file, stop, i64::from)?),
        (TypeChar::Int, 2) => Data::I64(values::<i16, i64>(file, stop, i64::from)?),
        (TypeChar::Int, 4) => Data::I64(values::<i32, i64>(file, stop, i64::from)?),
        (TypeChar::Int, 8) => Data::I64(values::<i64, i64>(file, stop, |x| x)?),
        (TypeChar::Uint, 1) => Data::I64(values::<u8, i64>(file, stop, i64::from)?),
        (TypeChar::Uint, 2) => Data::I64(values::<u16, i64>(file, stop, i64::from)?),
        (TypeChar::Uint, 4) => Data::I64(values::<u32, i64>(file, stop, i64::from)?),
        (TypeChar::Bool, _) => Data::Bool(values::<bool, bool>(file, stop, |x| x)?),
        _ => {
            return Err(format!(
                "has the type {told}; use float32, float64, an integer type up to int64, or bool"
            ));
        }
    };
    Ok(Tensor { shape, data })
}

fn values<T: npyz::Deserialize, U>(
    file: NpyFile<impl Read>,
    stop: &AtomicBool,
    widen: impl Fn(T) -> U,
) -> Result<Vec<U>, String> {
    let data = file.data::<T>().map_err(|e| e.to_string())?;
    let mut out = Vec::new();
    for (at, value) in data.enumerate() {
        if at % GLANCE == 0 && stop.load(Ordering::Relaxed) {
            return Err("interrupted".to_string());
        }
        out.push(widen(value.map_err(|e| e.to_string())?));
    }
    Ok(out)
}

/// A message in one line that quotes no more than a little of the file.
fn brief(message: &str) -> String {
    let words: Vec<&str> = message.split_whitespace().collect();
    let mut text = words.join(" ");
    if let Some((at, _)) = text.char_indices().nth(TOLD) {
        text.truncate(at);
        text.push('…');
    }
    text
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

    static NEVER: AtomicBool = AtomicBool::new(false);

    fn read(path: &Path) -> Result<Inputs> {
        let mut room = LARGEST;
        read_npz(path, &mut room, &NEVER)
    }

    #[test]
    fn arrays_take_no_more_than_there_is_room_for() {
        let bytes = npy(&[1000], Order::C, &[1i8; 1000]);
        let file = npz(&[("a.npy", bytes.clone()), ("b.npy", bytes)]);
        // A byte becomes eight.
        let mut room = 16_000;
        read_npz(file.path(), &mut room, &NEVER).expect("there is room for both");
        assert_eq!(room, 0);
        let error = read_npz(file.path(), &mut 15_999, &NEVER).expect_err("not for the second");
        let said = error.to_string();
        assert!(
            said.contains("array `b`") && said.contains("in memory"),
            "{said}"
        );
        // More than 1 GiB of numbers that the archive has in some hundred KiB.
        let count = (1u64 << 27) + (1 << 20);
        let head = format!("{{'descr': '|u1', 'fortran_order': False, 'shape': ({count},), }}\n");
        let length = u16::try_from(head.len()).expect("short").to_le_bytes();
        let head = [b"\x93NUMPY\x01\x00", &length[..], head.as_bytes()].concat();
        let file = tempfile::NamedTempFile::new().expect("a file");
        let mut zip = zip::ZipWriter::new(file.reopen().expect("again"));
        let options = zip::write::SimpleFileOptions::default();
        zip.start_file("x.npy", options).expect("started");
        zip.write_all(&head).expect("written");
        for _ in 0..129 {
            zip.write_all(&[0; 1 << 20]).expect("written");
        }
        zip.finish().expect("finished");
        let said = read(file.path()).expect_err("too large").to_string();
        assert!(
            said.contains("array `x`") && said.contains("in memory"),
            "{said}"
        );
    }

    #[test]
    fn hostile_archives_end_soon() {
        static ASKED: AtomicBool = AtomicBool::new(true);
        let mut room = LARGEST;
        let file = npz(&[("x.npy", npy(&[2], Order::C, &[1f32, 2.0]))]);
        let error = read_npz(file.path(), &mut room, &ASKED).expect_err("interrupted");
        assert!(error.is_interrupt(), "{error}");
        let names: Vec<String> = (0..1100).map(|i| format!("{i}.npy")).collect();
        let many: Vec<_> = names.iter().map(|n| (n.as_str(), Vec::new())).collect();
        let said = read(npz(&many).path()).expect_err("too many").to_string();
        assert!(said.contains("1100 files"), "{said}");
        let long = [
            b"\x93NUMPY\x02\x00\x00\x00\x00\xf0".as_slice(),
            &[b' '; 100],
        ]
        .concat();
        let said = read(npz(&[("x.npy", long)]).path())
            .expect_err("a header")
            .to_string();
        assert!(said.contains("its header has"), "{said}");
        let mut deep = b"\x93NUMPY\x01\x00\xff\x0f".to_vec();
        deep.extend([b'('; 0x0fff]);
        let said = read(npz(&[("x.npy", deep)]).path())
            .expect_err("nested")
            .to_string();
        assert!(said.contains("array `x`") && said.len() < 400, "{said}");
    }

    #[test]
    fn arrays_come_as_they_were_saved() {
        let file = npz(&[
            ("x.npy", npy(&[2, 2], Order::C, &[1.5f64, -2.0, 0.0, 4.0])),
            ("ids.npy", npy(&[3], Order::C, &[7i32, 8, 9])),
            ("readme.txt", b"no array".to_vec()),
        ]);
        let inputs = read(file.path()).expect("read");
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
            read(file.path()).expect_err("refused").to_string()
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
            read(file.path())
                .expect_err("empty")
                .to_string()
                .contains("no .npz")
        );
        assert!(read(Path::new("/nowhere.npz")).is_err());
    }
}
