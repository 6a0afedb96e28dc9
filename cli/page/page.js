"use strict";

// The page asks /run once and /answer for each question; what comes back is set as text, never as markup.

const at = (id) => document.getElementById(id);
let photo = null;
let preview = null;
let limit = Infinity;

function say(text, isFault = false) {
  at("message").textContent = text.charAt(0).toUpperCase() + text.slice(1);
  at("message").classList.toggle("fault", isFault);
}

function choose(file) {
  if (!file) return;
  photo = file;
  at("name").textContent = file.name;
  if (preview) URL.revokeObjectURL(preview);
  preview = URL.createObjectURL(file);
  show(preview, "", []);
  say("");
  at("phrase").focus();
}

function show(picture, asked, facts) {
  at("picture").src = picture;
  at("picture").alt = asked ? `The photograph with what was found for ${asked}` : "The photograph";
  at("asked").textContent = asked;
  at("facts").replaceChildren(...facts.map(([name, value]) => {
    const row = document.createElement("div");
    const term = document.createElement("dt");
    const detail = document.createElement("dd");
    term.textContent = name;
    detail.textContent = value;
    row.append(term, detail);
    return row;
  }));
  at("result").hidden = false;
}

function corners(box) {
  const [x0, y0, x1, y1] = box.map(Math.round);
  return `${x0} ${y0} to ${x1} ${y1}`;
}

async function told(response) {
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

async function ask(event) {
  event.preventDefault();
  const phrase = at("phrase").value;
  if (!photo) return say("Choose a photograph first.", true);
  if (!phrase.trim()) return say("Type what to find.", true);
  if (photo.size > limit) return say(`${photo.name} is larger than ${limit >> 20} MiB, the limit here.`, true);
  at("find").disabled = true;
  say("Looking …");
  try {
    const answer = await told(await fetch(`answer?phrase=${encodeURIComponent(phrase)}`, {
      method: "POST",
      headers: { "Content-Type": "application/octet-stream" },
      body: photo,
    }));
    const facts = [
      ...(answer.box_xyxy ? [["box", corners(answer.box_xyxy)]] : []),
      ...(answer.objectness === undefined ? [] : [["objectness", answer.objectness.toFixed(2)]]),
    ];
    if ("mask_px" in answer) facts.push(["mask", answer.mask_px ? `${answer.mask_px.toLocaleString("en")} px` : "empty"]);
    show(answer.picture, `“${answer.phrase}”`, facts);
    say(answer.remark);
  } catch (fault) {
    const isLost = fault instanceof TypeError || fault instanceof SyntaxError;
    say(isLost ? "No answer: is weakmcn serve still running?" : fault.message, true);
  } finally {
    at("find").disabled = false;
  }
}

at("ask").addEventListener("submit", ask);
at("picture").addEventListener("error", () => { at("result").hidden = true; });
at("photo").addEventListener("change", () => choose(at("photo").files[0]));
for (const kind of ["dragover", "dragleave", "drop"]) {
  at("drop").addEventListener(kind, (event) => {
    event.preventDefault();
    at("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") choose(event.dataTransfer.files[0]);
  });
}
fetch("run").then(told).then((run) => {
  limit = run.upload_bytes;
  at("run").textContent = `${run.run}: ${run.method}, trained on ${run.dataset}`;
}).catch((fault) => say(fault.message, true));
