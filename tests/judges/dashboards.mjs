// Grafana's published types, from npm, judge the dashboards: a compiler reads each as a value of
// them, so that what is missing, misspelt or of another kind is named.
import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import ts from "typescript";

const here = dirname(fileURLToPath(import.meta.url));
const folder = process.argv[2];
const raw = "./node_modules/@grafana/schema/dist/types/raw";
const kinds = { stat: "Stat", timeseries: "Series" };

// Files hold the values of enumerations; types want their names.
let source = `
import type { Dashboard as Whole, Panel, FieldConfig } from "${raw}/dashboard/x/types.gen";
import type { Options as StatOptions } from "${raw}/composable/stat/panelcfg/x/types.gen";
import type { Options as SeriesOptions, FieldConfig as SeriesCustom }
  from "${raw}/composable/timeseries/panelcfg/x/types.gen";
type Read<T> = 0 extends 1 & T ? any : T extends string ? \`\${T}\`
  : T extends object ? { [K in keyof T]: Read<T[K]> } : T;
type Target = { refId: string; datasource: { type: string; uid: string }; editorMode: "code";
  expr: string; legendFormat: string; range: boolean };
type Field<C> = { defaults: Read<Omit<FieldConfig, "custom">> & { custom: C }; overrides: [] };
type One<O, C> = Read<Omit<Panel, "options" | "targets" | "fieldConfig">>
  & { options: Read<O>; targets: Target[]; fieldConfig: Field<C> };
type Stat = One<StatOptions, {}> & { type: "stat" };
type Series = One<SeriesOptions, Read<SeriesCustom>> & { type: "timeseries" };
type Board = Read<Omit<Whole, "panels">> & { panels: unknown[] };
`;
const boards = readdirSync(folder).filter((name) => name.endsWith(".json"));
let panels = 0;
for (const name of boards) {
  const board = JSON.parse(readFileSync(join(folder, name), "utf8"));
  const label = name.replace(/\W/g, "_");
  source += `export const ${label}: Board = ${JSON.stringify({ ...board, panels: [] })};\n`;
  for (const panel of board.panels) {
    if (!kinds[panel.type]) throw new Error(`${name}: ${panel.title}: no judge for ${panel.type}`);
    source += `export const ${label}_${panel.id}: ${kinds[panel.type]} = ${JSON.stringify(panel)};\n`;
    panels += 1;
  }
}
const file = join(here, "boards.ts");
writeFileSync(file, source);
const options = {
  strict: true, noEmit: true, skipLibCheck: true, types: [],
  module: ts.ModuleKind.ESNext, moduleResolution: ts.ModuleResolutionKind.Bundler,
};
const wrong = ts.getPreEmitDiagnostics(ts.createProgram([file], options));
for (const { file: of, start, messageText } of wrong) {
  const line = of ? of.text.slice(0, start).split("\n").length : 0;
  const said = ts.flattenDiagnosticMessageText(messageText, "\n");
  const where = of ? of.text.split("\n")[line - 1].slice(0, 60) : "";
  console.error(`${of ? relative(here, of.fileName) : ""}:${line}: ${where}: ${said}`);
}
if (boards.length < 5 || panels < 50) throw new Error(`${boards.length} boards, ${panels} panels`);
console.log(`${boards.length} dashboards, ${panels} panels, ${wrong.length} faults`);
process.exit(wrong.length ? 1 : 0);
