// Starts `tfc lsp` for files of the language `tfm` and connects it to the editor.

"use strict";

const os = require("node:os");
const path = require("node:path");
const vscode = require("vscode");
const { LanguageClient, RevealOutputChannelOn } = require("vscode-languageclient/node");

/** @type {LanguageClient | undefined} */
let client;
/** One start or stop after another, however fast settings change. */
let work = Promise.resolve();

/** The setting `tfc.path`, its placeholders filled in. */
function command() {
  const written = vscode.workspace.getConfiguration("tfc").get("path", "tfc").trim() || "tfc";
  const folder = vscode.workspace.workspaceFolders?.[0]?.uri.fsPath ?? "";
  const filled = written.replaceAll("${workspaceFolder}", folder);
  return filled.startsWith("~") ? path.join(os.homedir(), filled.slice(1)) : filled;
}

async function start() {
  const executable = command();
  const server = { command: executable, args: ["lsp"] };
  client = new LanguageClient("tfc", "tfc", server, {
    documentSelector: [
      { scheme: "file", language: "tfm" },
      { scheme: "untitled", language: "tfm" },
    ],
    revealOutputChannelOn: RevealOutputChannelOn.Never,
  });
  try {
    await client.start();
  } catch (error) {
    client = undefined;
    const said = `\`${executable} lsp\` did not start: ${error.message ?? error}. Is tfc installed with its language server (pip install 'tfc[lsp]')?`;
    const open = "Open the setting tfc.path";
    // not awaited: the message stays until it is answered
    vscode.window.showErrorMessage(said, open).then((chosen) => {
      if (chosen === open) vscode.commands.executeCommand("workbench.action.openSettings", "tfc.path");
    });
  }
}

async function stop() {
  const running = client;
  client = undefined;
  await running?.dispose();
}

function restart() {
  work = work.then(stop, stop).then(start);
  return work;
}

function activate(context) {
  context.subscriptions.push(
    vscode.commands.registerCommand("tfc.restart", restart),
    vscode.workspace.onDidChangeConfiguration((change) => {
      if (change.affectsConfiguration("tfc.path")) restart();
    }),
  );
  return restart();
}

function deactivate() {
  work = work.then(stop, stop);
  return work;
}

module.exports = { activate, deactivate };
