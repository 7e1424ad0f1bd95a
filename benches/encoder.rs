//! An encoder in the engine against ONNX Runtime, in turns in the same run.
//!
//! `cargo bench --bench encoder -- MODEL.onnx [--threads N] [--tokens N] [--batch N] [--rounds N]
//! [--python PATH]` raises the model, runs both on the same token ids and prints the medians of
//! both, their ratio, and how far the outputs are apart. The peer is `benches/encoder_peer.py`,
//! which needs numpy and onnxruntime.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hlrc::exec::{Engine, Options, Tensor};
use hlrc::weights::FileCache;

struct Choices {
    model: PathBuf,
    threads: usize,
    tokens: usize,
    batch: usize,
    rounds: usize,
    python: PathBuf,
}

/// Runs of each side between two turns; the least of them counts as the turn's time.
const RUNS: usize = 10;

fn main() {
    let Some(choices) = choices() else {
        eprintln!("encoder: name a model: cargo bench --bench encoder -- MODEL.onnx");
        return;
    };
    if let Err(problem) = compare(&choices) {
        eprintln!("encoder: {problem}");
        std::process::exit(1);
    }
}

fn choices() -> Option<Choices> {
    let mut choices = Choices {
        model: PathBuf::new(),
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        tokens: 128,
        batch: 1,
        rounds: 15,
        python: PathBuf::from("target/venv/bin/python"),
    };
    let mut args = std::env::args().skip(1);
    let number = |text: Option<String>| text.and_then(|n| n.parse().ok());
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--threads" => choices.threads = number(args.next())?,
            "--tokens" => choices.tokens = number(args.next())?,
            "--batch" => choices.batch = number(args.next())?,
            "--rounds" => choices.rounds = number(args.next())?,
            "--python" => choices.python = PathBuf::from(args.next()?),
            // What cargo adds.
            "--bench" => {}
            path => choices.model = PathBuf::from(path),
        }
    }
    (!choices.model.as_os_str().is_empty()).then_some(choices)
}

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn compare(choices: &Choices) -> Outcome<()> {
    let files = FileCache::new();
    let module = hlrc::cli::load::executable(&choices.model)
        .map_err(|_| format!("{}: cannot be imported", choices.model.display()))?
        .module;
    let options = Options {
        threads: choices.threads,
        ..Options::default()
    };
    let engine = Engine::new(&module, &files, &options)?;
    let shape = [choices.batch, choices.tokens];
    let count = choices.batch * choices.tokens;
    let given = |name: &str| match name {
        "input_ids" => (0..count as i64).map(|i| 1000 + i * 37 % 20_000).collect(),
        "attention_mask" => vec![1; count],
        _ => vec![0; count],
    };
    let inputs: Vec<(&str, Tensor)> = engine
        .inputs()
        .iter()
        .map(|port| (&*port.name, Tensor::i64(&shape, given(&port.name))))
        .collect();
    let outputs = engine.run(&inputs)?;
    let mut peer = Peer::start(choices)?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..choices.rounds {
        ours.push(least(|| engine.run(&inputs).map(|_| ()))?);
        theirs.push(peer.turn("time")?);
        // Threads that still spin for more work would take the other side's cores.
        std::thread::sleep(Duration::from_millis(30));
    }
    let apart = peer.apart(&outputs)?;
    // Neighbours in time: what else the machine does slows both.
    let mut ratios: Vec<f64> = theirs.iter().zip(&ours).map(|(t, o)| t / o).collect();
    let ratio = median(&mut ratios);
    let (ours, theirs) = (median(&mut ours), median(&mut theirs));
    println!(
        "{}: {} x {} tokens, {} threads: ours {:.3} ms, ONNX Runtime {:.3} ms; {ratio:.2} of its speed, the median of the turns; outputs differ by {apart:.1e} of the largest",
        choices.model.display(),
        choices.batch,
        choices.tokens,
        choices.threads,
        ours * 1e3,
        theirs * 1e3,
    );
    Ok(())
}

/// The least time of some runs, seconds.
fn least(mut run: impl FnMut() -> Result<(), hlrc::exec::ExecError>) -> Outcome<f64> {
    let mut best = f64::INFINITY;
    for _ in 0..RUNS {
        let start = Instant::now();
        run()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// ONNX Runtime in a process of its own, idle until it is asked.
struct Peer {
    child: Child,
    answers: BufReader<std::process::ChildStdout>,
}

impl Peer {
    fn start(choices: &Choices) -> Outcome<Self> {
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("benches/encoder_peer.py");
        let sizes = [choices.threads, choices.batch, choices.tokens, RUNS].map(|n| n.to_string());
        let mut child = Command::new(&choices.python)
            .arg(script)
            .arg(&choices.model)
            .args(sizes)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| format!("{}: {e}", choices.python.display()))?;
        let answers = child.stdout.take().ok_or("the peer has no output")?;
        Ok(Self {
            child,
            answers: BufReader::new(answers),
        })
    }

    fn turn(&mut self, what: &str) -> Outcome<f64> {
        let to = self.child.stdin.as_mut().ok_or("the peer has no input")?;
        writeln!(to, "{what}")?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        let answer = line.trim().parse();
        Ok(answer.map_err(|_| format!("the peer answered {line:?}"))?)
    }

    /// Largest difference over all float outputs, as the peer sees it.
    fn apart(&mut self, outputs: &[(String, Tensor)]) -> Outcome<f64> {
        let folder = std::env::temp_dir().join(format!("encoder-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        for (i, (_, tensor)) in outputs.iter().enumerate() {
            let bytes = tensor.floats().unwrap_or_default().iter();
            let bytes: Vec<u8> = bytes.flat_map(|x| x.to_le_bytes()).collect();
            std::fs::write(folder.join(format!("{i}.f32")), bytes)?;
        }
        let apart = self.turn(&folder.display().to_string());
        std::fs::remove_dir_all(&folder)?;
        apart
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // It ends when its input does.
        let _ = self.child.wait();
    }
}
