// What Flutter's page cannot do by itself.

// Keys that a browser would take for itself; Flutter hears of them all the same.
addEventListener("keydown", event => {
    const key = event.key.toLowerCase();
    const ours = (event.ctrlKey || event.metaKey) && !event.altKey && (event.shiftKey ? key === "c" : key === "k");
    if (ours || ["f6", "f8", "f9"].includes(key) || event.altKey && "1234".includes(key))
        event.preventDefault();
}, true);

// The number of the title stands on the icon too.
new MutationObserver(() => {
    const count = Number(/^\((\d+)\)/.exec(document.title)?.[1] ?? 0);
    const icon = document.querySelector("link[rel~=icon]");
    if (!icon || icon.dataset.count === String(count))
        return;
    icon.dataset.count = count;
    icon.dataset.plain ??= icon.href;
    navigator.setAppBadge?.(count).catch(() => {});
    count ? draw(icon, count) : icon.href = icon.dataset.plain;
}).observe(document.head, {childList: true, subtree: true, characterData: true});

function draw(icon, count) {
    const picture = new Image(), canvas = document.createElement("canvas"), pen = canvas.getContext("2d");
    picture.onload = () => {
        canvas.width = canvas.height = 64;
        pen.drawImage(picture, 0, 0, 64, 64);
        pen.fillStyle = "#d32f2f";
        pen.beginPath();
        pen.arc(42, 42, 22, 0, 7);
        pen.fill();
        pen.fillStyle = "white";
        pen.font = "bold 30px sans-serif";
        pen.textAlign = "center";
        pen.fillText(count > 9 ? "9+" : count, 42, 53);
        if (icon.dataset.count === String(count))
            icon.href = canvas.toDataURL();
    };
    picture.src = icon.dataset.plain;
}

// To a screen reader Flutter tells of links as <a> without an address, which is none.
new MutationObserver(changes => {
    for (const {addedNodes} of changes)
        for (const node of addedNodes)
            for (const link of node.querySelectorAll?.("flt-semantics-host a, a") ?? [])
                link.setAttribute("role", "link");
}).observe(document, {childList: true, subtree: true});

// A notice: the program writes it where settings are kept, since Flet has no other way to a browser.
const setItem = Storage.prototype.setItem;
Storage.prototype.setItem = function (key, value) {
    setItem.call(this, key, value);
    if (key.endsWith("chat.notice"))
        notify(JSON.parse(JSON.parse(value)));
};

function notify({title, text, route}) {
    if (!document.hidden)
        return;
    beep();
    if (!("Notification" in window) || Notification.permission !== "granted")
        return;
    const notice = new Notification(title, {body: text, icon: "favicon.png", tag: route});
    notice.onclick = () => {
        window.focus();
        history.pushState({}, "", route);
        dispatchEvent(new PopStateEvent("popstate", {state: {}}));
        notice.close();
    };
}

function beep() {
    const audio = new AudioContext(), tone = audio.createOscillator(), volume = audio.createGain();
    volume.gain.setValueAtTime(0.06, audio.currentTime);
    volume.gain.exponentialRampToValueAtTime(0.0001, audio.currentTime + 0.3);
    tone.frequency.value = 740;
    tone.connect(volume).connect(audio.destination);
    tone.start();
    tone.stop(audio.currentTime + 0.3);
    tone.onended = () => audio.close();
}

// A browser asks a person for the permission to show notices only after a click.
addEventListener("click", () => {
    if ("Notification" in window && Notification.permission === "default" && location.protocol !== "file:")
        Notification.requestPermission();
}, {once: true, capture: true});

// Files that are dropped on the page, or pasted: each goes up, then the page asks whether to send them.
async function offer(files, place) {
    const session = Object.keys(sessionStorage).map(key => sessionStorage[key].replaceAll('"', ""))
        .find(value => /^[A-Za-z0-9_-]{12,}$/.test(value));
    let left = files.length;
    for (const file of files) {
        const query = new URLSearchParams({name: file.name, place, left: --left});
        await fetch(`/offer/${session}?${query}`, {method: "PUT", body: file});
    }
}

addEventListener("dragover", event => event.preventDefault(), true);
addEventListener("drop", event => {
    event.preventDefault();
    if (event.dataTransfer.files.length)
        offer([...event.dataTransfer.files], event.clientX / innerWidth);
}, true);
addEventListener("paste", event => {
    if (event.clipboardData?.files.length) {
        event.preventDefault();
        event.stopPropagation();
        offer([...event.clipboardData.files], -1);
    }
}, true);
