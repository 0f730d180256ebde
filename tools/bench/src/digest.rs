//! The page that a person reads in five minutes: what users pick instead, what restoring costs beside it, the time to
//! the first token, and what a card would do by the model. It takes its rows from the reports; all of them are in the
//! appendix.

use std::fmt::Write as _;

use crate::page::wrapped;
use crate::{Plot, Report, Table};

/// A question, and the rows that answer it.
struct Section {
    heading: &'static str,
    /// How to read the rows; no figures of a run.
    text: &'static str,
    report: &'static str,
    extracts: &'static [Extract],
}

/// Part of a table.
struct Extract {
    /// What the table's title begins with.
    table: &'static str,
    /// Columns to show, by name; all without any.
    columns: &'static [&'static str],
    /// Columns that have to have one of these values for a row to be shown.
    only: &'static [(&'static str, &'static [&'static str])],
    plot: &'static str,
}

const SECTIONS: [Section; 5] = [
    Section {
        heading: "What users pick instead",
        text: "The KV cache of a prompt of an 8B-class model comes from a Redis server on the same machine into the pages of a \
               serving engine. kvlane's inflate engine and its DMA are the emulator's: software on the same cores, where a card \
               has hardware. Its CPU seconds say what that software costs; what a host pays is the column of the client's \
               process. **Remembered** replaces inflating by a copy and shows the rest of the path beside a fast engine: \
               it is no result of kvlane. NIXL and Mooncake move bytes between memories: they have no store and no look-up.",
        report: "peers",
        extracts: &[
            Extract {
                table: "On loopback",
                columns: &[
                    "way",
                    "wire MB",
                    "restored bf16 MB/s",
                    "CPU s / GB",
                    "of it the client's process",
                    "checked",
                ],
                only: &[],
                plot: "peers-loopback",
            },
            Extract { table: "Over links", columns: &[], only: &[], plot: "peers-links" },
        ],
    },
    Section {
        heading: "What restoring costs the work beside it",
        text: "A small decoder decodes on core 0 while a gigabyte is restored: by dpu-app on core 1, or by a client in a thread of \
               the decoder's own process, which is where such clients live in a serving engine.",
        report: "interference",
        extracts: &[Extract {
            table: "A decode loop on core 0",
            columns: &[
                "beside the loop",
                "restored MB/s",
                "tokens/s",
                "spread",
                "ms/step p99",
                "slowdown",
                "tokens lost / GB restored",
            ],
            only: &[],
            plot: "interference-slowdown",
        }],
    },
    Section {
        heading: "Time to first token",
        text: "The real vLLM, on a CPU: one core for vLLM, one for everything else. A prompt's prefix is loaded through the \
               connector, or computed again. The weights of the larger model are random: its times are those of its size, its \
               answers mean nothing. TPOT is the time of each later token.",
        report: "serving",
        extracts: &[Extract {
            table: "A Llama of",
            columns: &[
                "way",
                "TTFT alone ms",
                "spread",
                "of recompute's",
                "TPOT alone ms",
                "TTFT of all at once ms",
                "prefix loaded",
                "equal answers",
            ],
            only: &[],
            plot: "serving-larger",
        }],
    },
    Section {
        heading: "A BlueField-3, by the model",
        text: "Simulated, not measured: dpu-app's own scheduler in virtual time, with the rates of a card as far as others have \
               measured them. The card's memory bandwidth for this work is an assumption; the appendix has 20, 40 and 60 GB/s \
               of it. Limit: the stage that would be the slowest alone.",
        report: "model",
        extracts: &[Extract {
            table: "llama-3.1-8b",
            columns: &["link Gbit/s", "recipe", "restored GB/s", "ms", "of the link", "limit"],
            only: &[("memory GB/s", &["40"]), ("link Gbit/s", &["10", "20", "40", "100"])],
            plot: "model-link",
        }],
    },
    Section {
        heading: "How far off the model is",
        text: "The same model, given the emulator's rates instead of a card's, beside what was then measured here.",
        report: "check",
        extracts: &[Extract {
            table: "",
            columns: &[
                "recipe",
                "block KiB",
                "slots",
                "depth",
                "engine GB/s, us a task, under way",
                "measured MB/s",
                "predicted MB/s",
                "error",
            ],
            only: &[],
            plot: "",
        }],
    },
];

const END: &str = "\
## What these figures leave out

- No card has run any of it. Engines, DMA and PCIe are software here, and share two cores with
  store, client and model.
- vLLM ran on a CPU; a GPU computes a prefix faster, and so gains less from loading it.
- Ratios compare what ran in one run, in turn. Figures of other runs or machines do not compare.

Everything else is in the [appendix](appendix.md): kernels, codecs, latency, the
whole path stage by stage, links, tiers, precision, sweeps, the roofline.
";

/// Names of the plots that the page shows.
pub(crate) fn plots() -> impl Iterator<Item = &'static str> {
    SECTIONS.iter().flat_map(|section| section.extracts).map(|extract| extract.plot).filter(|plot| !plot.is_empty())
}

/// All of the page below its head.
pub(crate) fn markdown(reports: &[&Report]) -> String {
    let mut text = String::new();
    for Section { heading, text: words, report, extracts } in &SECTIONS {
        let _ = write!(text, "\n## {heading}\n\n{}\n", wrapped(words));
        let Some(report) = reports.iter().find(|known| known.name == *report) else {
            let _ = write!(text, "\nNot measured in this run (`scripts/bench.sh {report}`).\n");
            continue;
        };
        for extract in *extracts {
            extract.write(report, &mut text);
        }
        let _ = write!(text, "\n`{}`\n", report.command);
    }
    text + "\n" + END
}

impl Extract {
    fn write(&self, report: &Report, text: &mut String) {
        if let Some(table) = report.tables.iter().find(|table| table.title.starts_with(self.table)) {
            let _ = write!(text, "\n{}", self.of(table).markdown());
        }
        if let Some(Plot { title, .. }) = report.plots.iter().find(|plot| plot.name == self.plot) {
            let _ = write!(text, "\n![{title}]({}.svg)\n", self.plot);
        }
    }

    /// The table with the columns and rows that are asked for.
    fn of(&self, table: &Table) -> Table {
        let place = |name: &&str| table.columns.iter().position(|column| column == name);
        let wanted: Vec<usize> = if self.columns.is_empty() {
            (0..table.columns.len()).collect()
        } else {
            self.columns.iter().filter_map(place).collect()
        };
        let shown = |row: &&Vec<String>| {
            self.only.iter().all(|(name, values)| place(name).is_some_and(|at| values.contains(&row[at].as_str())))
        };
        let pick = |cells: &Vec<String>| wanted.iter().map(|at| cells[*at].clone()).collect();
        Table {
            title: table.title.clone(),
            columns: pick(&table.columns),
            rows: table.rows.iter().filter(shown).map(pick).collect(),
            note: String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{markdown, plots};
    use crate::{Report, Table};

    #[test]
    fn the_page_has_the_rows_and_columns_that_it_names_and_says_what_was_not_measured() {
        let mut report = Report::new("model", "Model", "cargo bench --bench model");
        let mut table = Table::new("llama-3.1-8b", &["link Gbit/s", "recipe", "memory GB/s", "restored GB/s", "ms"]);
        table.row(&[&10, &"q5", &20, &1, &7]);
        table.row(&[&10, &"q5", &40, &2, &8]);
        table.row(&[&15, &"q5", &40, &3, &9]);
        report.tables.push(table);
        let page = markdown(&[&report]);
        assert!(
            page.contains("| link Gbit/s | recipe | restored GB/s | ms |\n|---|---|---|---|\n| 10 | q5 | 2 | 8 |\n\n")
        );
        assert!(
            page.contains("`cargo bench --bench model`")
                && page.contains("Not measured in this run (`scripts/bench.sh peers`)")
        );
        assert!(page.lines().filter(|line| !line.starts_with('|')).all(|line| line.len() <= 100));
        assert_eq!(plots().count(), 5);
    }
}
