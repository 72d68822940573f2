// What Flutter's page cannot do by itself.

// Keys that a browser would take for itself; Flutter hears of them all the same.
addEventListener("keydown", event => {
    const key = event.key.toLowerCase();
    const ours = (event.ctrlKey || event.metaKey) && !event.altKey && (event.shiftKey ? key === "c" : key === "k");
    if (ours || ["f6", "f8", "f9"].includes(key) || event.altKey && "1234".includes(key))
        event.preventDefault();
}, true);

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
