//! The table at the end: which test passed on which kernel.

use std::collections::HashMap;

use super::{
    guest::{Ended, StepEnd},
    payload::{Expected, LACKS, Payload, REFUSED, Step},
};

#[derive(Default)]
pub struct Report {
    kernels: Vec<Column>,
    /// Rows in the order in which they were first seen.
    rows: Vec<String>,
}

struct Column {
    name: String,
    version: String,
    cells: HashMap<String, String>,
    faults: Vec<String>,
    /// What the daemon says that the kernel lacks, where it is to refuse.
    lacks: Option<String>,
    last_lines: Vec<String>,
    seconds: f32,
}

impl Report {
    pub fn add(&mut self, name: &str, version: &str, payload: &Payload, ended: Ended) {
        let mut column = Column {
            name: name.to_owned(),
            version: version.to_owned(),
            cells: HashMap::new(),
            faults: ended.fault.into_iter().collect(),
            lacks: None,
            last_lines: ended.last_lines,
            seconds: ended.took.as_secs_f32(),
        };
        for (number, step) in payload.steps.iter().enumerate() {
            for (_, test, word) in ended.tests.iter().filter(|(of, _, _)| *of == number) {
                self.cell(&mut column, format!("{}: {test}", step.name), word);
            }
            // The exit code has the last word: it also knows of a program that died on the way.
            let end = ended.steps.iter().find(|it| it.step == number);
            let word = match (end, step.expected) {
                (Some(StepEnd { code: 0, .. }), Expected::Tests { all })
                    if ended.passed.get(&number).is_none_or(|passed| *passed == 0) =>
                {
                    if all {
                        column.faults.push(format!("{}: no test ran", step.name));
                    }
                    "no test".to_owned()
                }
                (
                    Some(StepEnd { code: 0, seconds, .. }),
                    Expected::Success | Expected::Tests { .. },
                ) => {
                    format!("ok, {seconds} s")
                }
                (Some(StepEnd { code: REFUSED, .. }), Expected::Refusal) => {
                    column.lacks = lacking(&column.last_lines);
                    if column.lacks.is_none() {
                        column.faults.push(format!("{}: refused without a feature", step.name));
                    }
                    format!("refused ({REFUSED})")
                }
                (Some(end), Expected::Refusal) => {
                    let code = end.code;
                    column.faults.push(format!(
                        "{}: exit code {code} on a kernel below the floor, not {REFUSED}",
                        step.name
                    ));
                    format!("exit {code}")
                }
                (
                    Some(StepEnd { code, seconds, .. }),
                    Expected::Success | Expected::Tests { .. },
                ) => {
                    column.faults.push(format!("{}: exit code {code}", step.name));
                    format!("exit {code}, {seconds} s")
                }
                (None, _) => {
                    column.faults.push(format!("{}: no result", step.name));
                    "no result".to_owned()
                }
            };
            self.cell(&mut column, step.name.clone(), &word);
        }
        let chosen = |step: &Step| step.expected == Expected::Tests { all: false };
        if payload.steps.iter().any(chosen) && ended.passed.values().sum::<u64>() == 0 {
            column.faults.push("no test of that name ran".to_owned());
        }
        self.kernels.push(column);
    }

    fn cell(&mut self, column: &mut Column, row: String, word: &str) {
        column.cells.insert(row.clone(), word.to_owned());
        if !self.rows.contains(&row) {
            self.rows.push(row);
        }
    }

    pub fn passed(&self) -> bool {
        !self.kernels.is_empty() && self.kernels.iter().all(|column| column.faults.is_empty())
    }

    pub fn print(&self) {
        let first = self.rows.iter().map(String::len).max().unwrap_or_default();
        let width = |column: &Column| {
            let longest = column.cells.values().map(String::len).max().unwrap_or_default();
            longest.max(column.name.len())
        };
        let line = |title: &str, cell: &dyn Fn(&Column) -> String| {
            let cells: String = self
                .kernels
                .iter()
                .map(|column| format!("  {:<1$}", cell(column), width(column)))
                .collect();
            println!("{}", format!("{title:<first$}{cells}").trim_end());
        };
        println!();
        line("kernel", &|column| column.name.clone());
        for row in &self.rows {
            line(row, &|column| column.cells.get(row).cloned().unwrap_or_else(|| "-".to_owned()));
        }
        println!();
        for column in &self.kernels {
            let verdict = match &column.lacks {
                _ if !column.faults.is_empty() => column.faults.join("; "),
                Some(feature) => format!("passed: below the floor, refused: lacks {feature}"),
                None => "passed".to_owned(),
            };
            println!(
                "{:>6}  Linux {}, {:.1} s: {verdict}",
                column.name, column.version, column.seconds
            );
        }
        for column in self.kernels.iter().filter(|column| !column.faults.is_empty()) {
            println!("\nthe last lines of {}:", column.name);
            for line in &column.last_lines {
                println!("{:>6} | {line}", column.name);
            }
        }
        let failed = self.kernels.iter().filter(|column| !column.faults.is_empty()).count();
        println!("\nkernels: {} passed, {failed} failed", self.kernels.len() - failed);
    }
}

/// The feature that the daemon names, without what it says about it.
fn lacking(lines: &[String]) -> Option<String> {
    let said = lines.iter().find_map(|line| Some(line.split_once(LACKS)?.1))?;
    let feature = said.split(". ").next().unwrap_or(said).trim();
    (!feature.is_empty()).then(|| feature.to_owned())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn payload() -> Payload {
        let step = |name: &str| step(name, Expected::Success);
        Payload { steps: vec![step("a"), step("b")], ..Payload::default() }
    }

    fn step(name: &str, expected: Expected) -> Step {
        Step { name: name.to_owned(), program: "/p".into(), args: Vec::new(), expected }
    }

    fn ended(codes: &[(usize, i32)]) -> Ended {
        let steps = codes.iter().map(|&(step, code)| StepEnd { step, code, seconds: 1 }).collect();
        Ended { steps, took: Duration::from_secs(1), ..Ended::default() }
    }

    #[test]
    fn only_results_of_every_step_on_every_kernel_pass() {
        let check = |ended: Vec<Ended>, expected: bool| {
            let mut report = Report::default();
            for it in ended {
                report.add("6.1", "6.1.0", &payload(), it);
            }
            assert_eq!(report.passed(), expected);
        };
        check(vec![], false);
        check(vec![ended(&[(0, 0), (1, 0)])], true);
        check(vec![ended(&[(0, 0), (1, 101)])], false);
        check(vec![ended(&[(0, 0)])], false);
        check(vec![ended(&[(0, 0), (1, 0)]), ended(&[])], false);
        let panicked = Ended { fault: Some("panic".to_owned()), ..ended(&[(0, 0), (1, 0)]) };
        check(vec![panicked], false);
    }

    #[test]
    fn a_file_of_tests_in_which_none_ran_has_not_passed() {
        let check = |all: bool, passed: &[(usize, u64)], expected: bool| {
            let step = |name: &str| step(name, Expected::Tests { all });
            let payload = Payload { steps: vec![step("a"), step("b")], ..Payload::default() };
            let passed = passed.iter().copied().collect();
            let mut report = Report::default();
            report.add("6.1", "6.1.0", &payload, Ended { passed, ..ended(&[(0, 0), (1, 0)]) });
            assert_eq!(report.passed(), expected);
            report.kernels.remove(0).cells
        };
        check(true, &[(0, 3), (1, 1)], true);
        let cells = check(true, &[(0, 3), (1, 0)], false);
        assert_eq!(cells["b"], "no test");
        check(true, &[(0, 3)], false);
        // Chosen by name: not every file has it, but one does.
        check(false, &[(0, 3), (1, 0)], true);
        check(false, &[(0, 0), (1, 0)], false);
    }

    #[test]
    fn below_the_floor_only_a_refusal_that_names_the_feature_passes() {
        let says = "mtls-daemon: error: this kernel lacks getpeername hooks (Linux 5.8 and later have it). So";
        let check = |code: i32, line: &str, expected: bool| {
            let mut report = Report::default();
            let payload =
                Payload { steps: vec![step("d", Expected::Refusal)], ..Payload::default() };
            let last_lines = vec![line.to_owned()];
            report.add("5.10", "5.10.0", &payload, Ended { last_lines, ..ended(&[(0, code)]) });
            assert_eq!(report.passed(), expected, "{code} {line}");
            report
        };
        let report = check(69, says, true);
        assert_eq!(report.kernels[0].cells["d"], "refused (69)");
        let lacks = Some("getpeername hooks (Linux 5.8 and later have it)".to_owned());
        assert_eq!(report.kernels[0].lacks, lacks);
        check(69, "no word of it", false);
        check(0, says, false);
        check(1, says, false);
        check(143, "ready", false);
    }

    #[test]
    fn where_success_is_expected_a_refusal_is_a_failure() {
        let mut report = Report::default();
        report.add("6.1", "6.1.0", &payload(), ended(&[(0, 69), (1, 0)]));
        assert!(!report.passed());
    }
}
