//! Where a result goes: checked before the work begins, so that hours are not lost to a path.

use super::args::OptArgs;
use super::{Exit, Failure, load};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

/// Where a result goes, and as what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Text IR on stdout.
    Stdout,
    /// A file of text IR.
    Text(PathBuf),
    /// An ONNX file, with its external data beside it where it is large.
    Onnx(PathBuf),
    /// Text IR into a device or pipe: it is written to, not replaced.
    Device(PathBuf),
    /// An ONNX model on stdout, by way of this scratch folder.
    OnnxStdout(PathBuf),
    /// An output folder.
    Folder(PathBuf),
}

impl Target {
    /// What the arguments say, with the default for what they don't.
    ///
    /// # Errors
    /// A [`Failure`] where nothing may or can be written there.
    pub fn of(args: &OptArgs, source: &load::Source) -> Result<Self, Failure> {
        let target = match (&args.output, args.text) {
            (None, true) => Self::Stdout,
            (None, false) => Self::Folder(PathBuf::from(format!("{}.hlrc", source.stem()))),
            (Some(path), text) if path == Path::new("-") => Self::stdout(text, source)?,
            (Some(path), true) if is_device(path) => Self::Device(path.clone()),
            (Some(path), true) => Self::Text(path.clone()),
            (Some(path), false) => Self::by_name(path)?,
        };
        let onnx = matches!(target, Self::Onnx(_) | Self::OnnxStdout(_));
        if args.onnx_cache && !onnx {
            let what = "--onnx-cache has no effect: the output is no ONNX model";
            return Err(Failure::new(Exit::Usage, what).help("name a .onnx file with -o"));
        }
        if !args.dry_run {
            target.check(args, source)?;
        }
        Ok(target)
    }

    fn stdout(text: bool, source: &load::Source) -> Result<Self, Failure> {
        if text {
            return Ok(Self::Stdout);
        }
        let refused = |what: &str| {
            Failure::new(Exit::Usage, what)
                .help("name a folder or a .onnx file with -o, or add -S for text IR")
        };
        if std::io::stdout().is_terminal() {
            return Err(refused("stdout is a terminal, and weights are binary"));
        }
        if !matches!(source, load::Source::Onnx(_)) {
            return Err(refused(
                "only ONNX and text go to stdout, and the input is no ONNX model",
            ));
        }
        let name = format!("hlrc-stdout-{}", std::process::id());
        Ok(Self::OnnxStdout(std::env::temp_dir().join(name)))
    }

    fn by_name(path: &Path) -> Result<Self, Failure> {
        let extension = path
            .extension()
            .and_then(|e| e.to_str())
            .unwrap_or_default()
            .to_ascii_lowercase();
        match extension.as_str() {
            "onnx" => Ok(Self::Onnx(path.into())),
            "hlir" => Ok(Self::Text(path.into())),
            "gguf" | "safetensors" | "pt" | "bin" | "json" => Err(Failure::new(
                Exit::Usage,
                format!("{}: .{extension} files can't be written", path.display()),
            )
            .help("outputs are folders (NAME.hlrc), .onnx and .hlir files")),
            _ => Ok(Self::Folder(path.into())),
        }
    }

    /// The path, where there is one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Stdout | Self::OnnxStdout(_) => None,
            Self::Text(path) | Self::Device(path) | Self::Onnx(path) | Self::Folder(path) => {
                Some(path)
            }
        }
    }

    fn check(&self, args: &OptArgs, source: &load::Source) -> Result<(), Failure> {
        let Some(path) = self.path() else {
            return Ok(());
        };
        let shown = path.display();
        if is_same(path, source) {
            return Err(
                Failure::new(Exit::Failure, format!("{shown}: is the input itself")).help(
                    "name another output with -o; the input is read while the output is written",
                ),
            );
        }
        let parent = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        if !parent.is_dir() {
            let what = if parent.exists() {
                "is not a folder"
            } else {
                "does not exist"
            };
            return Err(Failure::new(
                Exit::Failure,
                format!("{shown}: the folder {} {what}", parent.display()),
            )
            .help("create it first, or choose another place with -o"));
        }
        // A device or a pipe is written to, not replaced.
        let occupied = path.symlink_metadata().is_ok()
            && (path.is_dir() || path.is_file() || path.is_symlink());
        if occupied && !is_device(path) && !args.force && !args.resume {
            return Err(
                Failure::new(Exit::Failure, format!("{shown}: is there already"))
                    .help("--force replaces it, -o chooses another place"),
            );
        }
        if matches!(self, Self::Folder(_)) && occupied && !path.is_dir() {
            return Err(Failure::new(
                Exit::Failure,
                format!("{shown}: is a file, and the output is a folder"),
            )
            .help("choose another place with -o"));
        }
        if !matches!(self, Self::Folder(_)) && path.is_dir() {
            return Err(Failure::new(
                Exit::Failure,
                format!("{shown}: is a folder, and the output is a file"),
            )
            .help("choose another place with -o"));
        }
        self.check_replaced(args, source)
    }

    /// What a run replaces must be what a run wrote: `--force` is no way to lose other files.
    fn check_replaced(&self, args: &OptArgs, source: &load::Source) -> Result<(), Failure> {
        let folder = match self {
            Self::Folder(path) => path.clone(),
            Self::Text(path) => path.with_extension("weights"),
            Self::Onnx(path) => return check_report(&report_beside(path), args),
            _ => return Ok(()),
        };
        if folder.symlink_metadata().is_err() {
            return Ok(());
        }
        let shown = folder.display();
        if !args.force && !args.resume {
            let what = format!("{shown}: is there already");
            let failure = Failure::new(Exit::Failure, what);
            return Err(failure.help("--force replaces it, -o chooses another place"));
        }
        if holds(&folder, source) {
            let what = format!("{shown}: holds the input, and would be replaced");
            return Err(Failure::new(Exit::Failure, what).help("choose another place with -o"));
        }
        if !is_output(&folder) {
            let what = format!("{shown}: is no output of hlrc-opt, and is not replaced");
            let failure = Failure::new(Exit::Failure, what);
            return Err(failure.help("choose another place with -o, or remove it yourself"));
        }
        Ok(())
    }
}

/// `x.report.json` beside `x.onnx`.
pub fn report_beside(path: &Path) -> PathBuf {
    path.with_extension("report.json")
}

/// The report beside an output is replaced as the output is: when asked to, and only a file.
fn check_report(path: &Path, args: &OptArgs) -> Result<(), Failure> {
    let shown = path.display();
    match path.symlink_metadata() {
        Err(_) => Ok(()),
        Ok(_) if path.is_dir() => {
            let what = format!("{shown}: is a folder, and the report goes there");
            Err(Failure::new(Exit::Failure, what).help("choose another place with -o"))
        }
        Ok(_) if args.force || args.resume => Ok(()),
        Ok(_) => {
            let what = format!("{shown}: is there already, and the report goes there");
            let help = "--force replaces it, -o chooses another place";
            Err(Failure::new(Exit::Failure, what).help(help))
        }
    }
}

fn is_device(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|meta| !meta.is_file() && !meta.is_dir())
}

/// Whether a folder is one that a run has written, or empty.
fn is_output(folder: &Path) -> bool {
    let Ok(entries) = folder.read_dir() else {
        return false;
    };
    let names: Vec<String> = entries
        .map(|e| {
            e.map_or_else(
                |_| String::new(),
                |e| e.file_name().to_string_lossy().into(),
            )
        })
        .collect();
    let has = |name: &str| names.iter().any(|n| n == name);
    // The weights beside text are shards alone.
    let is_shard = |name: &String| {
        name.starts_with("model")
            && (name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json"))
    };
    let is_text = folder.extension().is_some_and(|e| e == "weights");
    (has(load::MODULE_FILE) && has("manifest.json"))
        || names.is_empty()
        || (is_text && names.iter().all(is_shard))
}

/// Whether the input lies in the folder.
fn holds(folder: &Path, source: &load::Source) -> bool {
    let inner = input(source).and_then(|path| path.canonicalize().ok());
    match (inner, folder.canonicalize()) {
        (Some(inner), Ok(folder)) => inner.starts_with(folder),
        _ => false,
    }
}

fn input(source: &load::Source) -> Option<&Path> {
    match source {
        load::Source::Stdin => None,
        load::Source::Text(p)
        | load::Source::Onnx(p)
        | load::Source::Output(p)
        | load::Source::Checkpoint(p) => Some(p),
    }
}

fn is_same(path: &Path, source: &load::Source) -> bool {
    let Some(input) = input(source) else {
        return false;
    };
    match (path.canonicalize(), input.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    }
}
