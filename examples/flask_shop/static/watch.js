// Polls the status of the order's saga, and shows the status of its steps.
const saga = document.getElementById("saga");
const texts = {
  PENDING: "Waiting for a worker.",
  RUNNING: "On its way.",
  COMPLETED: "It is on its way to you.",
  COMPENSATING: "Something went wrong: what was done is being undone.",
  COMPENSATED: "Everything is undone. Nothing was charged.",
  STUCK: "We are looking into it. You do not need to do anything.",
};
const states = {DONE: "done", PENDING: "pending", RUNNING: "running", FAILED: "refused", IN_DOUBT: "in doubt",
  COMPENSATING: "undoing", COMPENSATED: "undone", SKIPPED: "skipped", STUCK: "stuck"};

function show({status, steps, error}) {
  saga.dataset.status = status;
  const badge = document.getElementById("status");
  badge.dataset.status = status;
  badge.textContent = status.toLowerCase();
  document.getElementById("status-text").textContent = texts[status];
  for (const step of steps) {
    const element = document.getElementById(`step-${step.name}`);
    element.dataset.status = step.status;
    const never = step.status === "PENDING" && status.startsWith("COMPENSAT");
    element.querySelector(".state").textContent = never ? "not started" : states[step.status];
  }
  const reason = document.getElementById("error");
  reason.hidden = !error;
  reason.textContent = error || "";
}

async function watch() {
  let again = 3;  // seconds; while a person is needed, or the shop does not answer
  try {
    const answer = await fetch(saga.dataset.url);
    if (answer.status === 404) return;
    if (answer.ok) {
      const seen = await answer.json();
      show(seen);
      if (seen.status === "COMPLETED" || seen.status === "COMPENSATED") return;
    }
    if (answer.headers.has("Retry-After")) again = Number(answer.headers.get("Retry-After")) / 2;
  } catch { /* the network is away: ask again */ }
  setTimeout(watch, again * 1000);
}
watch();
