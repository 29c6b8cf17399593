// Keeps #sagas-live up to date: requests the same page again and replaces the old element with the new one.
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
        // Do not lose text that the user has selected to copy.
        var selection = window.getSelection();
        return document.hidden || (selection && !selection.isCollapsed);
    }

    function replace(page) {
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

    function warn(problem) {
        stale.hidden = !problem;
        stale.textContent = problem ? "Not up to date since " + good.toLocaleTimeString() + ": " + problem : "";
    }

    async function refresh() {
        if (!busy()) {
            try {
                var answer = await fetch(location.href, {cache: "no-cache", credentials: "same-origin"});
                if (!answer.ok) {
                    throw new Error("the response was " + answer.status);
                }
                replace(await answer.text());
                good = new Date();
                warn("");
            } catch (error) {
                warn(error.message);
            }
        }
        setTimeout(refresh, pause);
    }

    setTimeout(refresh, pause);
}());
