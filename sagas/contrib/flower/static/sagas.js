// Keeps #sagas-live up to date: asks for the same page again, and puts the new element in the place of the old one.
(function () {
    "use strict";

    var live = document.getElementById("sagas-live");
    var stale = document.getElementById("sagas-stale");
    if (!live || !stale) {
        return;
    }
    var pause = Number(live.dataset.poll) * 1000;
    var last = live.innerHTML;
    var good = new Date();

    function busy() {
        // Whoever marks text to copy it is not to lose it.
        var marked = window.getSelection();
        return document.hidden || (marked && !marked.isCollapsed);
    }

    function swap(page) {
        var fresh = new DOMParser().parseFromString(page, "text/html").getElementById("sagas-live");
        if (!fresh) {
            throw new Error("you may have to log in again: reload the page");
        }
        if (fresh.innerHTML === last) {
            return;
        }
        last = fresh.innerHTML;
        var focused = document.activeElement && live.contains(document.activeElement) && document.activeElement.id;
        live.querySelectorAll("details[open][id]").forEach(function (open) {
            var again = fresh.querySelector("#" + CSS.escape(open.id));
            if (again) {
                again.open = true;
            }
        });
        live.replaceWith(fresh);
        live = fresh;
        if (focused && document.getElementById(focused)) {
            document.getElementById(focused).focus({preventScroll: true});
        }
    }

    function tell(problem) {
        stale.hidden = !problem;
        stale.textContent = problem ? "Not up to date since " + good.toLocaleTimeString() + ": " + problem : "";
    }

    async function look() {
        if (!busy()) {
            try {
                var answer = await fetch(location.href, {cache: "no-cache", credentials: "same-origin"});
                if (!answer.ok) {
                    throw new Error("the answer was " + answer.status);
                }
                swap(await answer.text());
                good = new Date();
                tell("");
            } catch (error) {
                tell(error.message);
            }
        }
        setTimeout(look, pause);
    }

    setTimeout(look, pause);
}());
