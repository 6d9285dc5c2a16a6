const element = (id) => document.getElementById(id);
const [status, pause] = [element("status"), element("pause")];
const now = () => performance.now();
const key = ({ dataset: d }) => [d.publication, d.state, d.asOf, d.stale].join();
let main = element("results");
let timer, busy, paused, interrupted, clock, began = now(), failures = 0;

// What is withheld is always taken over.
const isOlder = ({ dataset: next }, { dataset: shown }) =>
  next.asOf && (+next.publication < +shown.publication
    || next.publication === shown.publication && Date.parse(next.asOf) < Date.parse(shown.asOf));

const show = (page) => {
  const next = page.getElementById("results");
  if (paused || isOlder(next, main)) return;
  if (key(next) === key(main)) {
    // A selection and a reader's place in the text stay.
    main.dataset.checked = next.dataset.checked;
    main.querySelector(".checked").textContent = next.querySelector(".checked").textContent;
    return;
  }
  const { state, stale } = main.dataset;
  main.replaceWith(next);
  main = next;
  document.title = page.title;
  if (next.dataset.state !== state || next.dataset.stale !== stale) {
    status.textContent = (next.querySelector(".stale") ?? next.querySelector("h2")).textContent;
  }
};

// By the answer's Date and Age, not by the visitor's clock.
const check = () => {
  if (paused || document.hidden || interrupted && !clock) return;
  const age = clock ? clock + now() - Date.parse(main.dataset.checked) : now() - began;
  if (age > 6e4 === !!interrupted) return;
  interrupted = !interrupted;
  status.classList.toggle("interrupted", interrupted);
  const { lost, back } = status.dataset;
  // Not over a new state.
  if (interrupted || status.textContent === lost) status.textContent = interrupted ? lost : back;
};

const plan = (wait) => {
  clearTimeout(timer);
  if (paused || document.hidden) return;
  wait ??= Math.min(5e3 * 2 ** failures, 4e4) + Math.random() * 2e3;
  // Not everybody at the moment of the opening.
  const left = Date.parse(main.dataset.opens) - clock - now();
  if (left > 0 && left < wait) wait = left + Math.random() * 1e4;
  timer = setTimeout(poll, wait);
};

const poll = async () => {
  if (busy) return;
  busy = true;
  try {
    const answer = await fetch(location.pathname, { cache: "no-cache", signal: AbortSignal.timeout(1e4) });
    if (!answer.ok) throw answer;
    const { headers } = answer;
    show(new DOMParser().parseFromString(await answer.text(), "text/html"));
    clock = Date.parse(headers.get("date")) + 1e3 * headers.get("age") - now();
    failures = 0;
  } catch {
    failures++;
  }
  busy = false;
  check();
  plan();
};

const resume = () => {
  [clock, began] = [undefined, now()];
  plan(Math.random() * 1e3);
};

pause.hidden = false;
pause.onclick = () => {
  paused = !paused;
  pause.setAttribute("aria-pressed", paused);
  resume();
};
document.onvisibilitychange = resume;
element("address").textContent = location.href;
setInterval(check, 5e3);
plan();
