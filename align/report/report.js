// Shows only the answers that hold the words of the search box.
const box = document.querySelector("#search");
const articles = [...document.querySelectorAll("article")];
const counter = document.querySelector("#shown");
box.hidden = false;
box.addEventListener("input", () => {
  const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const article of articles) {
    const text = article.textContent.toLowerCase();
    article.hidden = !words.every((word) => text.includes(word));
    shown += article.hidden ? 0 : 1;
  }
  counter.textContent = words.length ? `${shown} of ${articles.length}` : "";
});
