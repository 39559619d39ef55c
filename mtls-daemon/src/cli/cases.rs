//! `--cases FILE`: rows of questions with the answers that somebody expects, so that operators can
//! hold a policy to its results in their own CI.
//!
//! A file is a JSON object whose list `cases` (or another one that the verb names) holds the rows;
//! what stands beside the list applies to every row. One JSON line a row goes to stdout, in order:
//! `{"name": …, "result": …}`, with more fields where the verb has more to say. A row that cannot be
//! answered has `"result": null` and an `error`. Everything else goes to stderr.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use clap::Args;
use serde_json::{Map, Value, json};

use super::{Exit, Failed, print};

/// Rows that are asked for an answer without being held to it, by the field that marks them.
const APART: [&str; 3] = ["skip", "needs", "disputed"];

#[derive(Debug, Clone, Args)]
pub(super) struct CasesArgs {
    /// Answer every row of this JSON file, one JSON line a row: {"name": …, "result": …}
    #[arg(long, value_name = "FILE")]
    pub cases: Option<PathBuf>,
    /// Compare each answer with the row's expectation; exit 1 if one disagrees
    ///
    /// Rows marked `skip`, `needs` or `disputed` are counted apart and never disagree.
    #[arg(long, requires = "cases")]
    pub check: bool,
}

/// A file of rows.
pub(super) struct CaseFile {
    /// What `cases` and the rows lie in: paths in rows are relative to it.
    pub folder: PathBuf,
    /// The whole document: what stands beside the rows applies to each.
    pub top: Value,
}

impl CaseFile {
    pub fn read(path: &Path) -> Result<Self, Failed> {
        let text = std::fs::read(path)
            .with_context(|| format!("cannot read {}", path.display()))
            .map_err(|error| Failed::new(Exit::Config, error))?;
        let top = serde_json::from_slice(&text)
            .with_context(|| format!("{} is not JSON", path.display()))
            .map_err(|error| Failed::new(Exit::Config, error))?;
        let folder = path.parent().map(Path::to_owned).unwrap_or_default();
        Ok(Self { folder, top })
    }

    /// A field of the row, or else of the whole file.
    pub fn field<'v>(&'v self, row: &'v Value, name: &str) -> Option<&'v Value> {
        row.get(name).or_else(|| self.top.get(name)).filter(|value| !value.is_null())
    }

    pub fn text<'v>(&'v self, row: &'v Value, name: &str) -> Option<&'v str> {
        self.field(row, name).and_then(Value::as_str)
    }
}

/// The answer to one row.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Answer {
    pub result: Value,
    /// Further fields of the line.
    pub more: Map<String, Value>,
}

impl From<Value> for Answer {
    fn from(result: Value) -> Self {
        Self { result, more: Map::new() }
    }
}

/// How one verb reads its rows.
pub(super) struct Table<'t> {
    /// The lists that hold rows; those that a file has not are left out.
    pub lists: &'t [&'t str],
    /// What the row expects; None: it says nothing, and only has to be answered.
    pub expected: fn(&Value) -> Option<Value>,
    /// Whether an answer is what was expected.
    pub agrees: fn(expected: &Value, answer: &Answer) -> bool,
}

impl Default for Table<'_> {
    fn default() -> Self {
        Self {
            lists: &["cases"],
            expected: |row| row.get("expected").cloned(),
            agrees: |expected, answer| *expected == answer.result,
        }
    }
}

/// Answers every row of `args.cases`. The answer sees the list's name, the file and the row.
///
/// # Errors
/// Exit 64 for a file that cannot be read or has no rows, and under `--check` one whose rows expect
/// nothing; 1 if a row disagrees under `--check`.
pub(super) fn run(
    args: &CasesArgs,
    table: &Table<'_>,
    mut answer: impl FnMut(&str, &CaseFile, &Value) -> anyhow::Result<Answer>,
) -> Result<(), Failed> {
    let path = args.cases.as_deref().ok_or_else(|| anyhow!("--cases FILE is missing"))?;
    let file = CaseFile::read(path)?;
    let mut tally = Tally::default();
    for list in table.lists {
        for row in file.top.get(*list).and_then(Value::as_array).into_iter().flatten() {
            let answered = answer(list, &file, row);
            print(&line_of(json!(name(row)), &answered))?;
            tally.add(table, row, &answered);
        }
    }
    if tally.rows == 0 {
        let reason = anyhow!("{} has no rows in {}", path.display(), table.lists.join(", "));
        return Err(Failed::new(Exit::Config, reason));
    }
    if !args.check {
        return Ok(());
    }
    eprint!("{}", tally.disagreements);
    eprintln!("{}: {}", path.display(), tally.summary());
    if tally.agree + tally.disagree == 0 && tally.unasserted > 0 {
        let reason = anyhow!(
            "no row of {} expects anything that this verb answers: is the expectation's name right?",
            path.display()
        );
        return Err(Failed::new(Exit::Config, reason));
    }
    if tally.disagree > 0 {
        let error = (|| bail!("{} rows of {} disagree", tally.disagree, path.display()))();
        return error.map_err(Failed::from);
    }
    Ok(())
}

fn name(row: &Value) -> &str {
    row.get("name").and_then(Value::as_str).unwrap_or_default()
}

/// The line that a row called `name` is answered with.
pub(in crate::cli) fn line_of(name: Value, answered: &anyhow::Result<Answer>) -> String {
    let mut line = Map::new();
    line.insert("name".to_owned(), name);
    match answered {
        Ok(answer) => {
            line.insert("result".to_owned(), answer.result.clone());
            line.extend(answer.more.clone());
        }
        Err(error) => {
            line.insert("result".to_owned(), Value::Null);
            line.insert("error".to_owned(), json!(format!("{error:#}")));
        }
    }
    format!("{}\n", Value::Object(line))
}

#[derive(Default)]
struct Tally {
    rows: usize,
    agree: usize,
    disagree: usize,
    unasserted: usize,
    apart: [usize; APART.len()],
    disagreements: String,
}

impl Tally {
    fn add(&mut self, table: &Table<'_>, row: &Value, answered: &anyhow::Result<Answer>) {
        self.rows += 1;
        let marked = |mark: &&str| row.get(*mark).is_some_and(|v| !v.is_null() && *v != false);
        if let Some(position) = APART.iter().position(marked) {
            self.apart[position] += 1;
            return;
        }
        let why = match ((table.expected)(row), answered) {
            (None, Ok(_)) => {
                self.unasserted += 1;
                return;
            }
            (None, Err(error)) => format!("expected an answer, got an error: {error:#}"),
            (Some(expected), Ok(answer)) if (table.agrees)(&expected, answer) => {
                self.agree += 1;
                return;
            }
            (Some(expected), Ok(answer)) => format!("expected {expected}, got {}", answer.result),
            (Some(expected), Err(error)) => {
                format!("expected {expected}, got an error: {error:#}")
            }
        };
        self.disagree += 1;
        writeln!(self.disagreements, "disagrees: {}: {why}", name(row))
            .expect("writing to a String does not fail");
    }

    fn summary(&self) -> String {
        let mut out =
            format!("{} rows, {} agree, {} disagree", self.rows, self.agree, self.disagree);
        for (mark, count) in APART.iter().zip(self.apart) {
            write!(out, ", {count} {mark}").expect("writing to a String does not fail");
        }
        if self.unasserted > 0 {
            write!(out, ", {} expect nothing", self.unasserted)
                .expect("writing to a String does not fail");
        }
        out
    }
}
