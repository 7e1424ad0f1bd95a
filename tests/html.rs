//! The HTML report: a page that stands alone, says what the report says, and lets nothing out of its text.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;

use serde_json::{Value, json};

const MODEL: &str = "tests/fixtures/stories260K/stories260K.onnx";
const TEXT: &str = "tests/fixtures/text/stories.txt";
const SECTIONS: [&str; 9] = [
    "overview", "quality", "bytes", "layers", "passes", "spectra", "remarks", "matrices", "terms",
];

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hlrc-opt"))
        .args(args)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("XDG_CACHE_HOME", MADE.path().join("cache"))
        .stdin(Stdio::null())
        .output()
        .expect("the binary runs")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn ok(args: &[&str]) -> Output {
    let output = run(args);
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    output
}

fn fails(code: i32, args: &[&str]) -> String {
    let output = run(args);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
    said
}

static MADE: LazyLock<tempfile::TempDir> =
    LazyLock::new(|| tempfile::tempdir().expect("a scratch folder"));

fn place(name: &str) -> PathBuf {
    MADE.path().join(name)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// An output, made once, with the page that `opt --html` wrote.
static OUTPUT: LazyLock<(PathBuf, String)> = LazyLock::new(|| {
    let (out, html) = (place("out.hlrc"), place("opt.html"));
    let pipeline = "lowrank{rank=8},outlier,int4";
    let args = ["opt", MODEL, "-p", pipeline, "--eval", TEXT, "-q"];
    let places = ["-o", text(&out), "--html", text(&html)];
    ok(&[&args[..], &places[..]].concat());
    let page = std::fs::read_to_string(html).expect("a page");
    (out, page)
});

fn report() -> Value {
    let bytes = std::fs::read(OUTPUT.0.join("report.json")).expect("a report");
    serde_json::from_slice(&bytes).expect("JSON")
}

/// A page made of a report, without spectra.
fn page_of(name: &str, report: &Value) -> String {
    let file = place(&format!("{name}.json"));
    std::fs::write(&file, report.to_string()).expect("written");
    let page = ok(&["report", text(&file), "-o", "-", "--spectra", "none"]);
    String::from_utf8(page.stdout).expect("UTF-8")
}

/// Names of all elements, in order; panics where one is not closed, or closed twice.
fn elements(page: &str) -> Vec<String> {
    let (mut open, mut all): (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
    let mut rest = page.strip_prefix("<!DOCTYPE html>").expect("a doctype");
    while let Some(at) = rest.find('<') {
        assert!(!rest[..at].contains('>'), "a stray > in {:?}", &rest[..at]);
        let end = rest[at..].find('>').expect("an end of the tag") + at;
        let tag = &rest[at + 1..end];
        rest = &rest[end + 1..];
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop().as_deref(), Some(name), "behind {}", all.len());
            continue;
        }
        assert_eq!(tag.matches('"').count() % 2, 0, "quotes of <{tag}>");
        let name = tag.split([' ', '/']).next().unwrap_or_default().to_string();
        assert!(name.bytes().all(|b| b.is_ascii_alphanumeric()), "<{tag}>");
        all.push(name.clone());
        if name == "style" || name == "script" {
            let close = format!("</{name}>");
            let end = rest.find(&close).expect("an end of the text");
            rest = &rest[end + close.len()..];
        } else if name != "meta" && name != "wbr" && !tag.ends_with('/') {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "{open:?} are open");
    all
}

#[test]
fn a_page_is_whole_and_stands_alone() {
    let page = &OUTPUT.1;
    let all = elements(page);
    for id in SECTIONS {
        assert!(page.contains(&format!("<section id=\"{id}\">")), "{id}");
        assert!(page.contains(&format!("href=\"#{id}\"")), "{id}");
    }
    let count = |name: &str| all.iter().filter(|e| *e == name).count();
    // Perplexity, KL, bytes, two maps, error along the model, error against size, two of spectra.
    assert_eq!(count("figure"), 9);
    assert_eq!(count("figcaption"), 9);
    assert_eq!(page.matches("<svg role=\"img\"").count(), 9);
    for loads in [
        "http:", "https:", "//", "src=", "@import", "url(", "xlink", "<link", "<img",
    ] {
        let found = page
            .match_indices(loads)
            .map(|(at, _)| &page[at..(at + 60).min(page.len())]);
        // Comments of the script begin with the same two characters.
        let found: Vec<&str> = found.filter(|text| !text.starts_with("// ")).collect();
        assert!(found.is_empty(), "{loads}: {found:?}");
    }
    // Colours come from the page's variables, so that the dark scheme reaches the plots.
    assert!(!page.contains("fill=\"#") && !page.contains("stroke=\"#"));
    assert!(page.contains("prefers-color-scheme: dark"));
}

#[test]
fn the_page_says_what_the_report_says() {
    let (report, page) = (report(), OUTPUT.1.replace("<wbr>", ""));
    let sites = report["sites"].as_array().expect("sites");
    assert_eq!(
        page.matches("<tr><th scope=\"row\">/m/model/layers")
            .count(),
        sites.len() + 8
    );
    for site in sites {
        let name = site["name"].as_str().expect("a name");
        let row = page
            .lines()
            .find(|line| line.contains(name) && line.contains("class=\"bar\""));
        let row = row.unwrap_or_else(|| panic!("no row of {name}"));
        let number = |key: &str| format!("data-v=\"{}\"", site[key].as_f64().expect("a number"));
        for key in [
            "bits_per_weight",
            "rel_error",
            "bytes_before",
            "bytes_after",
        ] {
            assert!(row.contains(&number(key)), "{key}: {row}");
        }
    }
    let model = &report["evaluation"]["models"][0];
    let perplexity = model["perplexity"].as_f64().expect("a perplexity");
    let kl = model["against"]["kl"]["mean"]
        .as_f64()
        .expect("a divergence");
    for value in [perplexity, kl] {
        assert!(page.contains(&format!("data-v=\"{value}\"")), "{value}");
    }
    assert!(page.contains(report["pipeline"].as_str().expect("a pipeline")));
}

#[test]
fn bytes_are_all_of_the_output() {
    let report = report();
    let mut sum = 0;
    for site in report["sites"].as_array().expect("sites") {
        let parts = site["parts"].as_object().expect("parts");
        let own: u64 = parts.values().filter_map(Value::as_u64).sum();
        assert_eq!(Some(own), site["bytes_after"].as_u64(), "{}", site["name"]);
        sum += own;
    }
    let rest = report["untouched"].as_array().expect("groups");
    sum += rest
        .iter()
        .filter_map(|group| group["bytes"].as_u64())
        .sum::<u64>();
    assert_eq!(Some(sum), report["model_totals"]["bytes_after"].as_u64());
}

#[test]
fn the_same_report_gives_the_same_page() {
    let out = text(&OUTPUT.0);
    let page = |threads: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"))
            .args(["report", out, "--ref", MODEL, "-o", "-"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .env("RAYON_NUM_THREADS", threads)
            .output()
            .expect("the binary runs");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let one = page("1");
    assert!(one == page("2"), "pages of one and two threads");
    assert!(
        one == OUTPUT.1,
        "the page of `report` and that of `opt --html`"
    );
}

#[test]
fn names_are_text() {
    let hostile =
        "</td><script>alert(1)</script><img src=x onerror='x'>\"&\u{202e}#2.layers.1.\u{1}";
    let mut report = report();
    report["model"] = json!(hostile);
    report["pipeline"] = json!(hostile);
    report["sites"][0]["name"] = json!(hostile);
    report["sites"][0]["reverted"] = json!(hostile);
    report["sites"][1]["steps"][0]["term"] = json!(hostile);
    report["sites"][1]["steps"][0]["pass"] = json!(hostile);
    report["untouched"][0]["what"] = json!(hostile);
    for key in ["pass", "site", "message"] {
        report["remarks"][0][key] = json!(hostile);
    }
    let evaluation = &mut report["evaluation"];
    evaluation["described"] = json!(hostile);
    evaluation["data"][0] = json!(hostile);
    evaluation["models"][0]["name"] = json!(hostile);
    evaluation["models"][0]["without"] = json!([hostile]);
    let page = page_of("hostile", &report);
    elements(&page);
    assert_eq!(page.matches("<script").count(), 1, "the page's own");
    assert!(!page.contains("<img") && !page.contains('\u{202e}') && !page.contains('\u{1}'));
    assert!(page.contains("&lt;script&gt;alert(1)"));
}

#[test]
fn odd_reports_have_pages_too() {
    let whole = report();
    let mut empty = whole.clone();
    for key in ["sites", "remarks", "untouched"] {
        empty[key] = json!([]);
    }
    empty["evaluation"] = Value::Null;
    let page = page_of("empty", &empty);
    elements(&page);
    assert!(page.contains("No matrix was rewritten") && page.contains("holds no evaluation"));

    // What is infinite or no number is null in JSON.
    let mut numbers = whole.clone();
    numbers["sites"][0]["rel_error"] = Value::Null;
    numbers["evaluation"]["models"][0]["against"]["kl"]["max"] = Value::Null;
    numbers["evaluation"]["models"][0]["perplexity_standard_error"] = Value::Null;
    elements(&page_of("numbers", &numbers));

    // An earlier version said neither its version nor what bytes hold.
    let mut early = whole;
    let object = early.as_object_mut().expect("an object");
    object.remove("report_version");
    object.remove("untouched");
    for site in early["sites"].as_array_mut().expect("sites") {
        site.as_object_mut().expect("an object").remove("parts");
    }
    let page = page_of("early", &early);
    elements(&page);
    assert!(page.contains("of an earlier version"));
}

#[test]
fn pages_of_large_models_stay_small() {
    let mut report = report();
    let pattern = report["sites"].as_array().expect("sites").clone();
    let remark = report["remarks"][0].clone();
    let (mut sites, mut remarks) = (Vec::new(), Vec::new());
    for layer in 0..94 {
        for expert in 0..128 {
            let mut site = pattern[expert % 7].clone();
            let name = format!("model.layers.{layer}.mlp.experts.{expert}.gate_proj");
            site["name"] = json!(name);
            let mut own = remark.clone();
            own["site"] = json!(name);
            sites.push(site);
            remarks.push(own);
        }
    }
    report["sites"] = json!(sites);
    report["remarks"] = json!(remarks);
    let page = page_of("large", &report);
    elements(&page);
    assert!(page.len() < 3 << 20, "{} bytes", page.len());
    assert!(page.contains("2000 of 12032 matrices"));
}

#[test]
fn spectra_are_computed_or_said_to_be_missing() {
    let page = &OUTPUT.1;
    assert!(page.contains("Singular values") && page.contains("Energy against rank"));
    let without = place("without.html");
    let said = stderr(&ok(&["report", text(&OUTPUT.0), "-o", text(&without)]));
    assert!(
        said.contains("no spectra") && said.contains("--ref"),
        "{said}"
    );
    let page = std::fs::read_to_string(&without).expect("a page");
    assert!(page.contains("Spectra need the original"));
    let other = "tests/fixtures/hlrc_reference.hlir";
    let said = fails(3, &["report", text(&OUTPUT.0), "-o", "-", "--ref", other]);
    assert!(
        said.contains("it is not the original") && said.contains("help:"),
        "{said}"
    );
}

#[test]
fn what_is_no_report_is_refused() {
    let written = |name: &str, content: &str| {
        let path = place(name);
        std::fs::write(&path, content).expect("written");
        text(&path).to_string()
    };
    let cases = [
        (written("a.json", "{"), "is no report", "line 1 column"),
        (
            written("b.json", "{\"sites\": []}"),
            "missing field",
            "report.json",
        ),
        (
            written("c.json", "{\"report_version\": 99, \"sites\": []}"),
            "is 99",
            "later",
        ),
        (
            written("d.json", "{\"kind\": \"text\"}"),
            "is an evaluation",
            "--eval",
        ),
        (
            place("nowhere").to_str().expect("UTF-8").into(),
            "can't be read",
            "check the path",
        ),
        (
            "tests/fixtures".into(),
            "holds no report.json",
            "name an output",
        ),
        (MODEL.into(), "there is no", "name an ONNX file"),
    ];
    for (path, what, help) in cases {
        let said = fails(3, &["report", &path, "-o", "-"]);
        assert!(
            said.contains(what) && said.contains(help) && said.contains("help:"),
            "{said}"
        );
    }
    let mut bare = report();
    bare["evaluation"] = Value::Null;
    let bare = written("bare.json", &bare.to_string());
    let said = fails(3, &["report", text(&OUTPUT.0), "-o", "-", "--eval", &bare]);
    assert!(
        said.contains("holds no evaluation") && said.contains("hlrc-opt eval"),
        "{said}"
    );
}

#[test]
fn evaluations_come_from_files_too() {
    let evaluation = report()["evaluation"].to_string();
    let file = place("evaluation.json");
    std::fs::write(&file, evaluation).expect("written");
    let args = ["report", text(&OUTPUT.0), "--spectra", "none", "-o", "-"];
    let plain = ok(&args).stdout;
    let named = ok(&[&args[..], &["--eval", text(&file)]].concat()).stdout;
    assert!(plain == named);
}

#[test]
fn pages_replace_nothing_unasked() {
    let (out, there) = (text(&OUTPUT.0), place("there.html"));
    std::fs::write(&there, "mine").expect("written");
    let args = ["report", out, "--spectra", "none", "-o", text(&there)];
    assert!(fails(1, &args).contains("--force replaces it"));
    assert_eq!(std::fs::read(&there).expect("the file"), b"mine");
    ok(&[&args[..], &["--force"]].concat());
    assert!(std::fs::metadata(&there).expect("the page").len() > 10_000);
    let said = fails(1, &["report", out, "-o", "no/such/place.html"]);
    assert!(said.contains("does not exist"), "{said}");

    let opt = ["opt", MODEL, "-p", "int4", "-o", text(&place("other.hlrc"))].map(String::from);
    let with = |html: &str| {
        let args: Vec<&str> = opt
            .iter()
            .map(String::as_str)
            .chain(["--html", html])
            .collect();
        run(&args)
    };
    for (html, code) in [(text(&there), 1), (MODEL, 2)] {
        let output = with(html);
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        assert!(
            !place("other.hlrc").exists(),
            "refused before the work begins"
        );
    }
}
